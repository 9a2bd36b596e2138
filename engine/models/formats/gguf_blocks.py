"""Turn the block types of GGUF tensors into the fp32 numbers that their bytes stand for.

A row is cut into blocks of 32 weights. A block holds one scale in fp16 (d), in some types the least
value (m), and a code of 4, 5 or 8 bits for each weight. Codes of 4 bits lie in 16 bytes: byte j has
weight j in its lower half and weight j + 16 in its upper half. Source: ggml's reference code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """Describe one type: `weights` in `num_bytes` bytes, and the function that decodes them."""

    name: str
    weights: int
    num_bytes: int
    values: Callable[[np.ndarray], np.ndarray]  # uint8 [blocks, bytes] → fp32 [blocks, weights]


def dequantize(rows: np.ndarray, kind: int) -> np.ndarray:
    """Decode rows: uint8 [rows, bytes of a row] → fp32 [rows, weights of a row]."""
    block = BLOCKS[kind]
    return block.values(rows.reshape(-1, block.num_bytes)).reshape(len(rows), -1)


def named() -> str:
    """List the types that can be read, for people."""
    return ", ".join(block.name for block in BLOCKS.values())


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """Return the fp16 number at byte `at` of each block, as fp32 [blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Split uint8 [blocks, 16] into the 32 codes of each block."""
    return np.concatenate((packed & 15, packed >> 4), axis=1)


def _fifth_bits(packed: np.ndarray) -> np.ndarray:
    """Return bit i for weight i as 0 or 16: uint8 [blocks, 4] → uint8 [blocks, 32]."""
    return np.unpackbits(packed, axis=1, bitorder="little") << 4


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: np.ndarray) -> np.ndarray:
    codes = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * codes + _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _f32(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f4").astype(np.float32)


def _f16(blocks: np.ndarray) -> np.ndarray:
    return blocks.view("<f2").astype(np.float32)


def _bf16(blocks: np.ndarray) -> np.ndarray:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


BLOCKS = {
    0: Block("F32", 1, 4, _f32),
    1: Block("F16", 1, 2, _f16),
    2: Block("Q4_0", 32, 18, _q4_0),
    3: Block("Q4_1", 32, 20, _q4_1),
    6: Block("Q5_0", 32, 22, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    8: Block("Q8_0", 32, 34, _q8_0),
    30: Block("BF16", 1, 2, _bf16),
}
"""Blocks by the number that the file has for the type."""
