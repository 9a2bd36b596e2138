"""Check step 12: a Triton kernel for paged attention, in the interpreter, beside plain torch."""

from __future__ import annotations

import os
from types import ModuleType

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which the solution does

import torch

from course.exercise import Wrong

BLOCK, DIM, POOL = 8, 16, 12


def _case(length: int, scattered: bool, size: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Make a query, keys and values in pages, and a table; unused slots hold NaN."""
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(DIM, generator=generator) * size
    keys, values = (torch.full((POOL, BLOCK, DIM), torch.nan) for _ in "kv")
    entries = -(-length // BLOCK)
    table = torch.randperm(POOL, generator=generator) if scattered else torch.arange(POOL)
    table = table[:entries].to(torch.int32)
    for position in range(length):
        block, slot = table[position // BLOCK], position % BLOCK
        keys[block, slot] = torch.randn(DIM, generator=generator) * size
        values[block, slot] = torch.randn(DIM, generator=generator)
    return query, keys, values, table


def _expect(module: ModuleType, length: int, scattered: bool, size: float = 1.0) -> None:
    query, keys, values, table = _case(length, scattered, size)
    scale = DIM**-0.5
    slots = [int(table[p // BLOCK]) * BLOCK + p % BLOCK for p in range(length)]
    weights = torch.softmax(keys.view(-1, DIM)[slots] @ query * scale, 0)
    expected = weights @ values.view(-1, DIM)[slots]
    out = torch.full((DIM,), torch.nan)
    module.paged_attention[(1,)](query, keys, values, table, out, length, scale, BLOCK, DIM)
    where = f"{length} tokens in blocks of {BLOCK}, table {table.tolist()}"
    if bool(out.isnan().any()):
        raise Wrong(
            f"the result has NaN ({where}): nothing was summed, or a slot after the last token was"
        )
    off = float((out - expected).abs().max())
    if off > 1e-4:
        raise Wrong(f"the result is off by {off:.2g} ({where})")


def one_block(module: ModuleType) -> None:
    """Read the tokens of one full block."""
    _expect(module, BLOCK, False)


def part_of_a_block(module: ModuleType) -> None:
    """Read a block that isn't full: what lies after the last token doesn't count."""
    for length in (1, 3):
        _expect(module, length, False)


def many_blocks(module: ModuleType) -> None:
    """Join several blocks by the running maximum and sum."""
    for length in (2 * BLOCK, 3 * BLOCK + 5):
        _expect(module, length, False)


def scattered(module: ModuleType) -> None:
    """Read blocks that lie anywhere in the cache."""
    for length in (2 * BLOCK, 5 * BLOCK + 1):
        _expect(module, length, True)


def large(module: ModuleType) -> None:
    """Avoid an overflow of exp with large scores, by the running maximum."""
    _expect(module, 4 * BLOCK, True, size=12.0)


PARTS = (one_block, part_of_a_block, many_blocks, scattered, large)
