"""Writes small GGUF files, right ones and wrong ones, for tests."""

from __future__ import annotations

import struct

import numpy as np

KINDS = {bool: 7, int: 4, float: 6, str: 8}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(of) -> bytes:
    """Type and value: u32, f32, bool, string, or an array of one of them."""
    if isinstance(of, list):
        return (
            struct.pack("<I", 9)
            + value(of[0])[:4]
            + struct.pack("<Q", len(of))
            + b"".join(value(one)[4:] for one in of)
        )
    kind = struct.pack("<I", KINDS[type(of)])
    return kind + (string(of) if isinstance(of, str) else struct.pack(
        {bool: "<B", int: "<I", float: "<f"}[type(of)], of
    ))  # fmt: skip


def file(metadata: dict, tensors: dict[str, np.ndarray], alignment: int = 32) -> bytes:
    """A sound file; tensors in fp32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(of) for key, of in metadata.items())
    table, data = b"", b""
    for name, numbers in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        dims = numbers.shape[::-1]
        table += string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        table += struct.pack("<IQ", 0, len(data))
        data += numbers.astype("<f4").tobytes()
    head += table
    return head + b"\0" * (-len(head) % alignment) + data
