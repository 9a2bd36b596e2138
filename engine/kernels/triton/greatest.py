"""Find the greatest logit of each row in Triton, in two launches: `torch_ops.greatest`.

Grid of the first: (rows, pieces of 4,096 logits), so that the 128,256 logits of one request are
read by 32 programs and not by one; each writes its piece's greatest and where it is. Grid of the
second: one program for each row, which compares the pieces. torch's `max` would do the first half
as fast, but needs three more launches to find out which rows are finite.

A NaN counts as infinite: so one comparison at the end finds both.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

import engine.placeholders
from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.triton.start import FLOATS, let_next_start, start, wait_for_previous

PIECE = 4096
PIECE_WARPS, ROW_WARPS = 4, 1
MAX_PIECES = 1024  # of a row: what the second launch reads at once
NO_TOKEN = tl.constexpr(engine.placeholders.NO_TOKEN)


@triton.jit
def greatest_of_pieces_kernel(
    x_ptr,  # [rows, width], contiguous
    values_ptr,  # fp32 [rows, pieces], written
    places_ptr,  # int32 [rows, pieces], written: where in the row
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1)
    at = piece * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * width + at, mask=at < width, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("inf"))
    best = tl.max(x, 0)
    place = tl.min(tl.where(x == best, at, 2147483647), 0)
    to = row * tl.num_programs(1) + piece
    tl.store(values_ptr + to, best)
    tl.store(places_ptr + to, place)


@triton.jit
def greatest_of_rows_kernel(
    values_ptr,  # fp32 [rows, pieces]
    places_ptr,  # int32 [rows, pieces]
    out_ptr,  # int64 [rows], written
    pieces,
    BLOCK: tl.constexpr,  # pieces, rounded up to a power of two
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, BLOCK)
    real = piece < pieces
    values = tl.load(values_ptr + row * pieces + piece, mask=real, other=float("-inf"))
    places = tl.load(places_ptr + row * pieces + piece, mask=real, other=2147483647)
    best = tl.max(values, 0)
    place = tl.min(tl.where(values == best, places, 2147483647), 0)
    tl.store(out_ptr + row, tl.where(tl.abs(best) == float("inf"), NO_TOKEN, place).to(tl.int64))


def greatest(x: torch.Tensor) -> torch.Tensor:
    """Compute `torch_ops.greatest`."""
    if x.dtype not in FLOATS or not x.is_contiguous() or x.numel() == 0:
        return torch_ops.greatest(x)
    rows, width = x.shape
    pieces = triton.cdiv(width, PIECE)
    if pieces > MAX_PIECES:
        return torch_ops.greatest(x)
    values = torch.empty((rows, pieces), dtype=torch.float32, device=x.device)
    places = torch.empty((rows, pieces), dtype=torch.int32, device=x.device)
    out = torch.empty(rows, dtype=torch.int64, device=x.device)
    moved = values.nbytes + places.nbytes
    start(
        "greatest_of_pieces",
        greatest_of_pieces_kernel,
        (rows, pieces),
        (x, values, places, width),
        {"BLOCK": PIECE},
        PIECE_WARPS,
        1,
        lambda: Cost([rows, pieces], x.nbytes + moved, 2 * x.numel(), why="pieces of 4,096 logits"),
    )
    start(
        "greatest_of_rows",
        greatest_of_rows_kernel,
        (rows,),
        (values, places, out, pieces),
        {"BLOCK": block_for(pieces)},
        ROW_WARPS,
        1,
        lambda: Cost([rows], moved + out.nbytes, 2 * rows * pieces, why="one program for each row"),
    )
    return out


def block_for(pieces: int) -> int:
    """Return the number of pieces that the second launch reads at once."""
    return triton.next_power_of_2(pieces)
