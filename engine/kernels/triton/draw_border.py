"""Find where the kept tokens of a row end: step 2 of the draw (`draw.py`), in few launches.

A weight, an integer up to 2^30, is kept as fp32, which holds each of them exactly. So the bits of
two weights, read as integers, have the order of the weights. What min_p, top_k and top_p keep are
the tokens of greater bits than some `least`, and the first few, by id, of exactly these: the ties.

Two searches find `least`, one after the other. top_k's: the greatest bits that `top_k` tokens
reach. top_p's: the greatest that `enough` weight reaches. Bits lie in [low, low + 2^28), because a
weight that can be drawn is at least 1. In each of six levels a program compares the tokens of its
pieces with 32 thresholds at once, `low + column * 2^shift`, and writes for each piece and threshold
how many tokens reach it and what they weigh. The next level adds the pieces up, takes the last
column that enough of them reach, and searches within it, in pieces that have tokens there: soon in
a few. All sums are of integers, so no order matters.

Launches depend on shapes, and on whether any row wants a cut: the programs of a row that doesn't
return at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

COLUMNS = tl.constexpr(32)  # thresholds: one for each lane of a warp
SHIFTS = (23, 18, 13, 8, 3, 0)  # of each level; the first asks for the power of two
LEVELS = tl.constexpr(len(SHIFTS))
LAST = tl.constexpr(len(SHIFTS) - 1)
AT_ONCE = tl.constexpr(8)  # of them: a thread then keeps 16 weights, and not 64
TOP_K, TOP_P = tl.constexpr(0), tl.constexpr(1)  # a search, and what it asks for:
COUNTS, MASSES = tl.constexpr(0), tl.constexpr(1)  # how many tokens, or how much weight
NUM_WARPS = 16


@triton.jit
def weight_of(bits):
    """Return the weight as a number, int32, from its bits."""
    return bits.to(tl.float32, bitcast=True).to(tl.int32)


@triton.jit
def low_at(lows_ptr, SEARCH: tl.constexpr, level, row):
    """Return the address of a level's least threshold in int32 [2 searches, 6 levels, rows]."""
    return lows_ptr + (SEARCH * LEVELS + level) * tl.num_programs(0) + row


@triton.jit
def reach_at(reach_ptr, SEARCH: tl.constexpr, level, WHAT: tl.constexpr, row, pieces):
    """Return the address of a row's [pieces, 32] in the `reach` array.

    It is int32 [2 searches, 2, 2: counts and masses, rows, pieces, 32]. Levels alternate
    between two halves: each reads what the level before it wrote, and writes the other half.
    """
    place = ((SEARCH * 2 + level % 2) * 2 + WHAT) * tl.num_programs(0) + row.to(tl.int64)
    return reach_ptr + place * pieces * COLUMNS


@triton.jit
def write_reach(weights_at, real, low, shift, counts_at, masses_at):
    """Write how many tokens of a piece reach each threshold, and what they weigh.

    weights_at: pointers [BLOCK] to fp32, real where the row has tokens; counts_at, masses_at: to
    int32 [32].
    """
    weight = tl.load(weights_at, mask=real, other=0.0)
    bits = weight.to(tl.int32, bitcast=True)
    mass = weight.to(tl.int32)
    for first in range(0, COLUMNS, AT_ONCE):
        column = first + tl.arange(0, AT_ONCE)
        reached = bits[:, None] >= (low + (column << shift))[None, :]
        tl.store(counts_at + column, tl.sum(reached.to(tl.int32), 0))
        tl.store(masses_at + column, tl.sum(tl.where(reached, mass[:, None], 0), 0))


@triton.jit
def write_same(count, mass, counts_at, masses_at):
    """Write a piece without tokens between the thresholds: what reaches one reaches all."""
    column = tl.arange(0, COLUMNS)
    tl.store(counts_at + column, count + 0 * column)
    tl.store(masses_at + column, mass + 0 * column)


@triton.jit
def border(first_at, wanted, pieces, PIECES: tl.constexpr):
    """Return (a level's last column reached by `wanted`, the part of it below the next column).

    The second is how much only the tokens below the next column bring. first_at: int32 [pieces,
    32], counts or masses. If all tokens bring less, all are wanted.
    """
    piece = tl.arange(0, PIECES)[:, None]
    at = first_at + piece * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    totals = tl.sum(tl.load(at, mask=piece < pieces, other=0), 0)
    wanted = tl.maximum(tl.minimum(wanted, tl.max(totals, 0)), 1)
    column = tl.maximum(tl.sum((totals >= wanted).to(tl.int32), 0) - 1, 0)
    return column, wanted - tl.max(tl.where(totals < wanted, totals, 0), 0)


@triton.jit
def column_of_pieces(first_at, column, pieces, PIECES: tl.constexpr):
    """Load one column, int32 [PIECES]; 0 beyond the last piece."""
    piece = tl.arange(0, PIECES)
    return tl.load(first_at + piece * COLUMNS + column, mask=piece < pieces, other=0)


@triton.jit
def left_by_top_k(reach_ptr, lows_ptr, top_k, row, vocab, pieces, PIECES: tl.constexpr):
    """Return what min_p and top_k leave: (`least`, `ties`, the last level, the column).

    The column is the one that the tokens above `least` reach in that level. Without top_k it is the
    first level, and there are no ties.
    """
    level = 0
    least = tl.load(low_at(lows_ptr, TOP_K, 0, row)) - 1
    ties = 0
    above = 0
    if top_k < vocab:
        level = LAST
        counts_at = reach_at(reach_ptr, TOP_K, level, COUNTS, row, pieces)
        column, ties = border(counts_at, top_k.to(tl.int32), pieces, PIECES)
        least = tl.load(low_at(lows_ptr, TOP_K, level, row)) + column
        above = column + 1
    return least, ties, level, above


@triton.jit
def top_k_kernel(
    weights_ptr,  # fp32 [rows, vocab]
    top_k_ptr,  # int64 [rows], vocab or more: off
    lows_ptr,  # int32 [2, 6, rows]: that of the level is read
    reach_ptr,  # int32 [2, 2, 2, rows, pieces, 32], written
    vocab,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,  # tokens of a piece
    PDL: tl.constexpr,
):
    """Search top_k's first level."""
    let_next_start(PDL)
    row = tl.program_id(0)
    pieces = tl.cdiv(vocab, BLOCK)
    top_k = tl.load(top_k_ptr + row)
    wait_for_previous(PDL)
    if top_k >= vocab:
        return
    low = tl.load(low_at(lows_ptr, TOP_K, 0, row))
    weights_ptr += row.to(tl.int64) * vocab
    counts_at = reach_at(reach_ptr, TOP_K, 0, COUNTS, row, pieces)
    masses_at = reach_at(reach_ptr, TOP_K, 0, MASSES, row, pieces)
    for piece in range(tl.program_id(1), pieces, tl.num_programs(1)):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        to = piece * COLUMNS
        write_reach(weights_ptr + at, at < vocab, low, SHIFT, counts_at + to, masses_at + to)


@triton.jit
def top_p_kernel(
    weights_ptr,  # fp32 [rows, vocab]
    top_k_ptr,  # int64 [rows], vocab or more: off
    top_p_ptr,  # fp64 [rows], 1: off
    enough_ptr,  # int32 [rows], written: the weight that top_p wants
    lows_ptr,  # int32 [2, 6, rows]: top_k's are read, top_p's first is written
    reach_ptr,  # int32 [2, 2, 2, rows, pieces, 32]: likewise
    vocab,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,  # of a row, rounded up to a power of two
    PDL: tl.constexpr,
):
    """Search top_p's first level, from what top_k's left."""
    let_next_start(PDL)
    row = tl.program_id(0)
    pieces = tl.cdiv(vocab, BLOCK)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    wait_for_previous(PDL)
    if top_p >= 1.0:
        return
    least, ties, level, above = left_by_top_k(
        reach_ptr, lows_ptr, top_k, row, vocab, pieces, PIECES
    )
    left_at = reach_at(reach_ptr, TOP_K, level, MASSES, row, pieces)
    mass = tl.sum(column_of_pieces(left_at, above, pieces, PIECES), 0) + ties * weight_of(least)
    enough = tl.maximum(tl.ceil(mass.to(tl.float64) * top_p).to(tl.int32), 1)
    first = tl.program_id(1) == 0
    tl.store(enough_ptr + row, enough, mask=first)
    tl.store(low_at(lows_ptr, TOP_P, 0, row), least, mask=first)
    weights_ptr += row.to(tl.int64) * vocab
    left_at += tl.maximum(above - 1, 0)  # the column of `least`
    counts_at = reach_at(reach_ptr, TOP_P, 0, COUNTS, row, pieces)
    masses_at = reach_at(reach_ptr, TOP_P, 0, MASSES, row, pieces)
    for piece in range(tl.program_id(1), pieces, tl.num_programs(1)):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        to = piece * COLUMNS
        if tl.load(left_at + to) == 0:
            write_same(0, 0, counts_at + to, masses_at + to)
        else:
            write_reach(weights_ptr + at, at < vocab, least, SHIFT, counts_at + to, masses_at + to)


@triton.jit(do_not_specialize=["level", "before", "shift"])
def narrow_kernel(
    weights_ptr,  # fp32 [rows, vocab]
    top_k_ptr,  # int64 [rows], vocab or more: off
    top_p_ptr,  # fp64 [rows], 1: off
    enough_ptr,  # int32 [rows]
    lows_ptr,  # int32 [2, 6, rows]: that of the level before is read, this one's is written
    reach_ptr,  # int32 [2, 2, 2, rows, pieces, 32]: likewise
    vocab,
    level,
    before,  # the shift of the level before
    shift,
    SEARCH: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Search a level after the first."""
    let_next_start(PDL)
    row = tl.program_id(0)
    pieces = tl.cdiv(vocab, BLOCK)
    if SEARCH == TOP_K:
        top_k = tl.load(top_k_ptr + row)
        off = top_k >= vocab
    else:
        off = tl.load(top_p_ptr + row) >= 1.0
    wait_for_previous(PDL)
    if off:
        return
    old_counts_at = reach_at(reach_ptr, SEARCH, level - 1, COUNTS, row, pieces)
    old_masses_at = reach_at(reach_ptr, SEARCH, level - 1, MASSES, row, pieces)
    if SEARCH == TOP_K:
        column, _ = border(old_counts_at, top_k.to(tl.int32), pieces, PIECES)
    else:
        column, _ = border(old_masses_at, tl.load(enough_ptr + row), pieces, PIECES)
    low = tl.load(low_at(lows_ptr, SEARCH, level - 1, row)) + (column << before)
    tl.store(low_at(lows_ptr, SEARCH, level, row), low, mask=tl.program_id(1) == 0)
    weights_ptr += row.to(tl.int64) * vocab
    counts_at = reach_at(reach_ptr, SEARCH, level, COUNTS, row, pieces)
    masses_at = reach_at(reach_ptr, SEARCH, level, MASSES, row, pieces)
    for piece in range(tl.program_id(1), pieces, tl.num_programs(1)):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        to = piece * COLUMNS
        reached = tl.load(old_counts_at + to + column)
        # (of what lies beyond the last column nothing was written)
        beyond = tl.load(old_counts_at + to + column + 1, mask=column + 1 < COLUMNS, other=-1)
        if reached == beyond:
            mass = tl.load(old_masses_at + to + column)
            write_same(reached, mass, counts_at + to, masses_at + to)
        else:
            write_reach(weights_ptr + at, at < vocab, low, shift, counts_at + to, masses_at + to)


def find_borders(
    searches: list[tl.constexpr],
    weights: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    enough: torch.Tensor,
    lows: torch.Tensor,
    reach: torch.Tensor,
    programs: int,
    constants: dict[str, int],
) -> None:
    """Launch the searches that are wanted, top_k's first, level by level.

    Shapes and contents are stated at the kernels. programs: of a row. constants: BLOCK and PIECES.
    """
    rows, vocab = weights.shape
    tensors = weights, top_k, top_p, enough, lows, reach, vocab

    def run(name: str, kernel: Any, arguments: tuple[Any, ...], its: dict[str, int]) -> None:
        # A search reads and writes half of `reach`.
        moved = weights.nbytes + reach.nbytes // 2
        flops = 2 * COLUMNS.value * weights.numel()
        why = "each row's 32 thresholds; counted as if all rows had this cut"
        cost = lambda: Cost([rows, programs], moved, flops, why=why)  # noqa: E731
        start(name, kernel, (rows, programs), arguments, its, NUM_WARPS, 1, cost)

    def narrow(search: tl.constexpr) -> None:
        its = {"SEARCH": search.value, **constants}
        for level in range(1, len(SHIFTS)):
            shifts = SHIFTS[level - 1 : level + 1]
            run("draw_narrow", narrow_kernel, (*tensors, level, *shifts), its)

    block = {"SHIFT": SHIFTS[0], "BLOCK": constants["BLOCK"]}
    if TOP_K in searches:
        run("draw_top_k", top_k_kernel, (weights, top_k, lows, reach, vocab), block)
        narrow(TOP_K)
    if TOP_P in searches:
        run("draw_top_p", top_p_kernel, tensors, {"SHIFT": SHIFTS[0], **constants})
        narrow(TOP_P)
