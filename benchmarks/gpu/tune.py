"""Find which tile, and how many segments of a context, serve decode attention best on this card.

    python -m benchmarks.gpu.tune [--dry-run]

prints, for some shapes and batches with contexts of different lengths, the fastest of all pairs,
and what `tile_for` and `splits_for` in engine/kernels/triton/attention.py choose today. The times
are of CUDA graphs, the joining of segments included; the shares are of the card's copy rate.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.graph_time import graph_seconds
from engine.one_line import one_line
from engine.trace.command import run_command

SEGMENTS = (1, 2, 4, 8, 16, 32)
TILES = (
    *((32, 4, 3), (32, 4, 4), (64, 4, 2), (64, 4, 3), (64, 8, 2), (64, 2, 3)),
    *((32, 2, 3), (32, 1, 4), (16, 1, 4), (128, 4, 2), (128, 8, 2)),
)
"""(keys of a tile, warps, stages)"""


class Case(NamedTuple):
    rows: int
    context: int  # the mean; single ones are 0.4 to 1.6 times as long
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype


CASES = (
    *(Case(rows, 1000, 16, 8, 128, torch.bfloat16) for rows in (256, 92, 44, 9)),
    Case(256, 1024, 32, 8, 128, torch.float16),
    *(Case(1, context, 32, 8, 64, torch.bfloat16) for context in (160, 4000)),
)
TINY = (Case(2, 20, 4, 2, 64, torch.float32),)


def tried(case: Case, device: torch.device, segments: tuple, tiles: tuple) -> Iterator[dict]:
    """Return {tile, splits, us, bytes} for every pair, and first for today's choice (tile None)."""
    from engine.kernels.triton import paged_attention as module
    from engine.kernels.triton.attention import Tile

    q, cache, batch, spec, moved = _step(case, device)
    chosen = module.tile_for, module.splits_for
    tries = 5 if device.type == "cuda" else 1

    def measure() -> float:
        call = partial(module.paged_attention, q, cache, batch, spec)
        return 1e6 * graph_seconds(call, device, tries)

    yield {"tile": None, "splits": None, "us": measure(), "bytes": moved}
    try:
        for keys, warps, stages in tiles:
            tile = Tile(16, keys, warps, stages)
            module.tile_for = lambda *_, tile=tile: tile
            for splits in segments:
                module.splits_for = lambda *_, splits=splits: splits
                found = {"tile": (keys, warps, stages), "splits": splits, "bytes": moved}
                try:
                    yield {**found, "us": measure()}
                except Exception as error:  # too much shared memory for this card
                    print(f"  {found['tile']}: {one_line(error, 90)}")
                    break
    finally:
        module.tile_for, module.splits_for = chosen


def _step(case: Case, device: torch.device) -> tuple[Any, ...]:
    """Return (q, cache, batch, spec, bytes of keys and values that are read)."""
    from benchmarks.gpu.paged_step import decode_step  # main first decides how Triton runs
    from engine.kernels.batch import AttentionSpec

    torch.manual_seed(0)
    contexts = ((torch.rand(case.rows) * 1.2 + 0.4) * case.context).int().clamp_min(1)
    cache, batch = decode_step(contexts, case.kv_heads, case.head_dim, case.dtype, device)
    spec = AttentionSpec(case.heads, case.kv_heads, case.head_dim, case.head_dim**-0.5)
    q = torch.randn(case.rows, case.heads, case.head_dim, device=device).to(case.dtype)
    moved = 2 * int(contexts.sum()) * case.kv_heads * case.head_dim * case.dtype.itemsize
    return q, cache, batch, spec, moved


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="one tiny case, no GPU")
    dry = parser.parse_args(argv).dry_run
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run needs none")
    from benchmarks.gpu import limits

    device = torch.device("cpu" if dry else "cuda")
    rate = limits.measure(device, 1 << 20 if dry else 1 << 30, 64).copy_gb_s
    for case in TINY if dry else CASES:
        today, *others = tried(case, device, *(((1, 2), TILES[:2]) if dry else (SEGMENTS, TILES)))
        print(case)
        for found in (today, *sorted(others, key=lambda found: found["us"])[:5]):
            share = found["bytes"] / found["us"] / 1e3 / rate
            name = f"{found['tile']} in {found['splits']}" if found["tile"] else "today's choice"
            print(f"  {name}: {found['us']:,.1f} µs, {share:.0%} of the copy rate")
    return 0


if __name__ == "__main__":
    run_command(main)
