"""Read the block types of GGUF tensors: codes, scales and offsets from bytes, and their numbers.

A row is cut into blocks, of 32 weights, or of 256 in the types with a K. A block holds scales in
fp16 (d), in some types the least value (m), and a code of 4, 5, 6 or 8 bits for each weight. In a
block of 256, each group of 32 or 16 has a small integer that multiplies d. The number of a weight
is (code - zero) * scale + offset, in fp32 and in this order. Source: ggml's reference code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Parts(NamedTuple):
    """Hold what the bytes of some blocks say."""

    codes: np.ndarray  # uint8 [blocks, weights]
    scales: np.ndarray  # fp16 or fp32 [blocks, groups]
    zero: int = 0
    offsets: np.ndarray | None = None  # fp16 or fp32 [blocks, groups]

    def numbers(self) -> np.ndarray:
        """Compute the numbers: fp32 [blocks, weights]."""
        blocks, groups = self.scales.shape
        numbers = self.codes.reshape(blocks, groups, -1).astype(np.float32)
        if self.zero:
            numbers -= self.zero
        numbers *= self.scales[:, :, None].astype(np.float32)
        if self.offsets is not None:
            numbers += self.offsets[:, :, None].astype(np.float32)
        return numbers.reshape(blocks, -1)


class Block(NamedTuple):
    """Describe a type: `weights` in `num_bytes` bytes, and the function that takes them apart.

    parts: uint8 [blocks, bytes] → `Parts`, of a quantized type. numbers: the same → fp32 [blocks,
    weights], of plain numbers.
    """

    name: str
    weights: int
    num_bytes: int
    bits: int = 0  # of a code, 0 for plain numbers
    group: int = 0  # weights that share a scale
    parts: Callable[[np.ndarray], Parts] | None = None
    numbers: Callable[[np.ndarray], np.ndarray] | None = None


def dequantize(rows: np.ndarray, kind: int) -> np.ndarray:
    """Decode rows: uint8 [rows, bytes of a row] → fp32 [rows, weights of a row]."""
    block = BLOCKS[kind]
    blocks = rows.reshape(-1, block.num_bytes)
    with np.errstate(invalid="ignore"):  # scales that aren't finite are the caller's to refuse
        if block.parts is not None:
            numbers = block.parts(blocks).numbers()
        else:
            assert block.numbers is not None
            numbers = block.numbers(blocks)
    return numbers.reshape(len(rows), -1)


def named() -> str:
    """List the types that can be read, for people."""
    return ", ".join(block.name for block in BLOCKS.values())


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the fp16 number at byte `at` of each block: [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2")


# ------------------------------------------------------------------------------- blocks of 32


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Split uint8 [..., n] into 2 n codes: all lower halves, then all upper ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Return bit i for weight i as 0 or 16: uint8 [blocks, 4] → uint8 [blocks, 32]."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(blocks: np.ndarray) -> Parts:
    return Parts(_nibbles(blocks[:, 2:]), _half(blocks, 0), 8)


def _q4_1(blocks: np.ndarray) -> Parts:
    return Parts(_nibbles(blocks[:, 4:]), _half(blocks, 0), offsets=_half(blocks, 2))


def _q5_0(blocks: np.ndarray) -> Parts:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Parts(codes, _half(blocks, 0), 16)


def _q5_1(blocks: np.ndarray) -> Parts:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Parts(codes, _half(blocks, 0), offsets=_half(blocks, 2))


def _q8_0(blocks: np.ndarray) -> Parts:
    return Parts(blocks[:, 2:] ^ 128, _half(blocks, 0), 128)  # two's complement, plus 128


# ------------------------------------------------------------------------------ blocks of 256


def _scales_and_mins(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take apart eight scales and eight mins of 6 bits: uint8 [blocks, 12] → two [blocks, 8].

    The first four of each lie in the lower 6 bits of bytes 0-3 and 4-7. The last four have their
    lower 4 bits in bytes 8-11 and their upper 2 in the rest of bytes 0-3 and 4-7.
    """
    low, high, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((low & 63, (last & 15) | (low >> 6) << 4), axis=1)
    mins = np.concatenate((high & 63, (last >> 4) | (high >> 6) << 4), axis=1)
    return scales, mins


def _with_mins(blocks: np.ndarray, codes: np.ndarray) -> Parts:
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    d, least = _half(blocks, 0).astype(np.float32), _half(blocks, 2).astype(np.float32)
    return Parts(codes, d * scales, offsets=-(least * mins))


def _q4_k(blocks: np.ndarray) -> Parts:
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32))
    return _with_mins(blocks, codes.reshape(-1, 256))


def _q5_k(blocks: np.ndarray) -> Parts:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]  # group i has bit i of the 32 bytes
    fifth = (blocks[:, None, 16:48] >> shifts & 1) << 4
    return _with_mins(blocks, (low | fifth).reshape(-1, 256))


def _q6_k(blocks: np.ndarray) -> Parts:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[None, None, :, None]
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts & 3
    scales = _half(blocks, 208).astype(np.float32) * blocks[:, 192:208].view(np.int8)
    return Parts((low | high << 4).reshape(-1, 256), scales, 32)


# ------------------------------------------------------------------------------ plain numbers


def _f32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


BLOCKS = {
    0: Block("F32", 1, 4, numbers=_f32),
    1: Block("F16", 1, 2, numbers=_f16),
    2: Block("Q4_0", 32, 18, 4, 32, _q4_0),
    3: Block("Q4_1", 32, 20, 4, 32, _q4_1),
    6: Block("Q5_0", 32, 22, 5, 32, _q5_0),
    7: Block("Q5_1", 32, 24, 5, 32, _q5_1),
    8: Block("Q8_0", 32, 34, 8, 32, _q8_0),
    12: Block("Q4_K", 256, 144, 4, 32, _q4_k),
    13: Block("Q5_K", 256, 176, 5, 32, _q5_k),
    14: Block("Q6_K", 256, 210, 6, 16, _q6_k),
    30: Block("BF16", 1, 2, numbers=_bf16),
}
"""Blocks by the number that the file has for the type."""

UNREAD = {
    10: "Q2_K",
    11: "Q3_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Types that are known and not read."""
