"""One solution of step 2."""

from __future__ import annotations


def slots(table: list[int], block_size: int, start: int, num_tokens: int) -> list[int]:
    positions = range(start, start + num_tokens)
    return [table[p // block_size] * block_size + p % block_size for p in positions]


def blocks_to_add(num_tokens: int, more: int, block_size: int) -> int:
    return -(-(num_tokens + more) // block_size) - -(-num_tokens // block_size)
