"""Put tokens that the step before has drawn where this one needs them: `torch_ops.take_drawn`.

Grid: pieces of 256 rows. It is one launch instead of torch's four, each of which takes the host 20
to 30 µs beside an H200 (benchmarks/results/gpu-nvidia-h200-runs/run3.txt, under a profiler).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 256
NUM_WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def take_drawn_kernel(
    token_ids_ptr,  # int64 [rows], changed where negative
    drawn_ptr,  # int64 [tokens drawn]
    places_ptr,  # int64 [rows], in drawn; read where the token is negative
    rows,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(PDL)
    token = tl.load(token_ids_ptr + row, mask=row < rows, other=0)
    unknown = (token < 0) & (row < rows)
    place = tl.load(places_ptr + row, mask=unknown, other=0)
    drawn = tl.load(drawn_ptr + place, mask=unknown, other=0)
    tl.store(token_ids_ptr + row, tl.maximum(drawn, 0), mask=unknown)


def take_drawn(token_ids: torch.Tensor, drawn: torch.Tensor, places: torch.Tensor) -> None:
    """Compute `torch_ops.take_drawn`."""
    rows = len(token_ids)
    grid = (triton.cdiv(rows, PIECE),)
    start(
        "take_drawn",
        take_drawn_kernel,
        grid,
        (token_ids, drawn, places, rows),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), 32 * rows, 0, why="pieces of 256 rows"),
    )
