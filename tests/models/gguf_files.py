"""Writes small GGUF files, right ones and wrong ones, for tests."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from engine.models.formats.gguf_blocks import BLOCKS


class Wide(float):
    """A number of 64 bits."""


KINDS = {bool: 7, int: 4, float: 6, str: 8, Wide: 12}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(of) -> bytes:
    """Type and value: u32, f32, f64, bool, string, or an array of one of them."""
    if isinstance(of, list):
        return (
            struct.pack("<I", 9)
            + value(of[0])[:4]
            + struct.pack("<Q", len(of))
            + b"".join(value(one)[4:] for one in of)
        )
    kind = struct.pack("<I", KINDS[type(of)])
    return kind + (string(of) if isinstance(of, str) else struct.pack(
        {bool: "<B", int: "<I", float: "<f", Wide: "<d"}[type(of)], of
    ))  # fmt: skip


HALVES = {2: 1, 3: 2, 6: 1, 7: 2, 8: 1, 12: 2, 13: 2}
"""Numbers in fp16 at the beginning of a block, by its type."""


class Blocks(NamedTuple):
    """A quantized tensor: its type, and uint8 [rows, bytes of a row]."""

    kind: int
    raw: np.ndarray
    width: int


def random_blocks(kind: int, rows: int, width: int, rng: np.random.Generator) -> Blocks:
    """Any codes, and scales of either sign that make weights of about 0.05."""
    block = BLOCKS[kind]
    raw = rng.integers(0, 256, (rows, width // block.weights, block.num_bytes), np.uint8)
    size = 0.05 / 2 ** (block.bits - 1) / (16 if block.weights == 256 else 1)
    at, halves = (-2, 1) if kind == 14 else (0, HALVES[kind])
    scales = (size * rng.normal(size=(*raw.shape[:2], halves))).astype("<f2").view(np.uint8)
    raw[:, :, at : at + 2 * halves or None] = scales
    return Blocks(kind, raw.reshape(rows, -1), width)


def file(metadata: dict, tensors: dict[str, np.ndarray | Blocks], alignment: int = 32) -> bytes:
    """A sound file; arrays in fp32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + value(of) for key, of in metadata.items())
    table, data = b"", b""
    for name, numbers in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        blocks = numbers if isinstance(numbers, Blocks) else None
        dims = numbers.shape[::-1] if blocks is None else (blocks.width, len(blocks.raw))
        table += string(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        table += struct.pack("<IQ", 0 if blocks is None else blocks.kind, len(data))
        data += numbers.astype("<f4").tobytes() if blocks is None else blocks.raw.tobytes()
    head += table
    return head + b"\0" * (-len(head) % alignment) + data
