"""Draw tokens in Triton, in 3 to 15 launches without synchronisation.

`worker/sampling/exact_draw.py` defines the draw and its step numbers, and is the reference:
`draw(cut(integer_weights(logits), cuts), words)`.

Grid: (rows, programs), where a row is cut into pieces of 1,024 tokens: the 128,256 logits of one
request are the work of 126 programs. One program alone would need as long for them as the rest of a
step takes. With many rows a program takes several pieces, because each program of a row adds up all
pieces again. Results are written for each piece, and a row's sum adds its pieces in one order: so a
token doesn't depend on how many rows there are.

1. `exponentials_kernel`: of each piece the greatest logit, and the sum of exponentials over it.
   `weights_kernel`: the weights, from the sums of all pieces, and what min_p leaves of each piece.
2. The searches for the last kept token: `draw_border.py`, 12 of the launches.
3. `draw_kernel`, one program for each row: in which piece the running sum exceeds r, then where.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

import engine.placeholders
from engine.kernels.cost import Cost
from engine.kernels.triton.draw_border import (
    COLUMNS,
    COUNTS,
    LAST,
    LEVELS,
    MASSES,
    TOP_K,
    TOP_P,
    border,
    column_of_pieces,
    find_borders,
    left_by_top_k,
    low_at,
    reach_at,
    weight_of,
)
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 1024  # tokens
MOST_PIECES = 512  # of a row: with a larger vocabulary, pieces are larger
PROGRAMS = 1024  # of all rows together: enough to fill a device
NUM_WARPS = 8
NO_TOKEN = tl.constexpr(engine.placeholders.NO_TOKEN)


@triton.jit
def exponentials_kernel(
    logits_ptr,  # fp32 [rows, vocab], divided by the temperature
    greatest_ptr,  # fp32 [rows, pieces], written; infinite where there is a NaN
    sums_ptr,  # fp32 [rows, pieces], written: of the exponentials of logits less the greatest
    vocab,
    BLOCK: tl.constexpr,  # tokens of a piece
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    pieces = tl.cdiv(vocab, BLOCK)
    for piece in range(tl.program_id(1), pieces, tl.num_programs(1)):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * vocab + at, mask=at < vocab, other=float("-inf"))
        greatest = tl.max(tl.where(x == x, x, float("inf")), 0)
        # less 0 where it is infinite: a piece of nothing but −inf has the sum 0
        x -= tl.where(tl.abs(greatest) == float("inf"), 0.0, greatest)
        tl.store(greatest_ptr + row * pieces + piece, greatest)
        tl.store(sums_ptr + row * pieces + piece, tl.sum(tl.exp(x), 0))


@triton.jit
def _weights(x, top, total):
    """Compute the weights in fp32; each is an integer, up to 2^30."""
    return tl.floor(tl.exp(x - top) / total * 1073741824.0 + 0.5)


@triton.jit
def weights_kernel(
    logits_ptr,  # fp32 [rows, vocab]
    greatest_ptr,  # fp32 [rows, pieces]
    sums_ptr,  # fp32 [rows, pieces]
    min_p_ptr,  # fp64 [rows], 0: off
    weights_ptr,  # fp32 [rows, vocab], written; 0 where a row isn't finite
    lows_ptr,  # int32 [2, 6, rows], written: of top_k's first level
    reach_ptr,  # int32 [2, 2, 2, rows, pieces, 32], written: its first column
    vocab,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,  # of a row, rounded up to a power of two
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.program_id(0)
    pieces = tl.cdiv(vocab, BLOCK)
    min_p = tl.load(min_p_ptr + row)
    wait_for_previous(PDL)
    parts = tl.arange(0, PIECES)
    of_row = row.to(tl.int64) * pieces + parts
    greatest = tl.load(greatest_ptr + of_row, mask=parts < pieces, other=float("-inf"))
    sums = tl.load(sums_ptr + of_row, mask=parts < pieces, other=0.0)
    top = tl.max(greatest, 0)
    finite = tl.abs(top) < float("inf")
    top = tl.where(finite, top, 0.0)
    total = tl.where(finite, tl.sum(sums * tl.exp(greatest - top), 0), 1.0)
    # min_p leaves weights of `floor` or more, and one of 0 is never drawn
    most = _weights(top, top, total)
    floor = tl.maximum(tl.ceil(most.to(tl.float64) * min_p), 1.0)
    low = floor.to(tl.float32).to(tl.int32, bitcast=True)
    low += (weight_of(low) < floor).to(tl.int32)  # the next that fp32 holds, if it was rounded down
    tl.store(low_at(lows_ptr, TOP_K, 0, row), low, mask=tl.program_id(1) == 0)
    first = row.to(tl.int64) * vocab
    masses_at = reach_at(reach_ptr, TOP_K, 0, MASSES, row, pieces)
    for piece in range(tl.program_id(1), pieces, tl.num_programs(1)):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + first + at, mask=at < vocab, other=float("-inf"))
        weight = tl.where(finite, _weights(x, top, total), 0.0)
        tl.store(weights_ptr + first + at, weight, mask=at < vocab)
        kept = tl.where(weight.to(tl.int32, bitcast=True) >= low, weight, 0.0).to(tl.int32)
        tl.store(masses_at + piece * COLUMNS, tl.sum(kept, 0))


@triton.jit
def draw_kernel(
    weights_ptr,  # fp32 [rows, vocab]
    top_k_ptr,  # int64 [rows], vocab or more: off
    top_p_ptr,  # fp64 [rows], 1: off
    words_ptr,  # int64 [rows], in [0, 2^32)
    enough_ptr,  # int32 [rows], the weight that top_p wants
    lows_ptr,  # int32 [2, 6, rows]
    reach_ptr,  # int32 [2, 2, 2, rows, pieces, 32]
    tokens_ptr,  # int64 [rows], written; NO_TOKEN for a row that isn't finite
    vocab,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.program_id(0)
    pieces = tl.cdiv(vocab, BLOCK)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    word = tl.load(words_ptr + row)
    wait_for_previous(PDL)
    if top_p < 1.0:
        masses_at = reach_at(reach_ptr, TOP_P, LAST, MASSES, row, pieces)
        counts_at = reach_at(reach_ptr, TOP_P, LAST, COUNTS, row, pieces)
        column, missing = border(masses_at, tl.load(enough_ptr + row), pieces, PIECES)
        least = tl.load(low_at(lows_ptr, TOP_P, LAST, row)) + column
        ties = tl.cdiv(missing, tl.maximum(weight_of(least), 1))
        above = column + 1
    else:
        least, ties, level, above = left_by_top_k(
            reach_ptr, lows_ptr, top_k, row, vocab, pieces, PIECES
        )
        masses_at = reach_at(reach_ptr, TOP_K, level, MASSES, row, pieces)
        counts_at = reach_at(reach_ptr, TOP_K, level, COUNTS, row, pieces)

    # the piece: each one's kept weight is that above the border, and that of its share of the ties
    kept = column_of_pieces(masses_at, above, pieces, PIECES)
    tied = tl.zeros([PIECES], tl.int32)
    if ties > 0:
        tied = column_of_pieces(counts_at, above - 1, pieces, PIECES)
        tied -= column_of_pieces(counts_at, above, pieces, PIECES)
    tied = tl.minimum(tied, tl.maximum(ties - (tl.cumsum(tied, 0) - tied), 0))
    kept += tied * weight_of(least)
    total = tl.sum(kept, 0)
    if total == 0:
        tl.store(tokens_ptr + row, NO_TOKEN)
        return
    r = ((word * total.to(tl.int64)) >> 32).to(tl.int32)
    running = tl.cumsum(kept, 0)
    piece = tl.sum((running <= r).to(tl.int32), 0)
    before = tl.max(tl.where(running <= r, running, 0), 0)
    ties = tl.sum(tl.where(tl.arange(0, PIECES) == piece, tied, 0), 0)

    # the token in it
    at = piece * BLOCK + tl.arange(0, BLOCK)
    weight = tl.load(weights_ptr + row.to(tl.int64) * vocab + at, mask=at < vocab, other=0.0)
    bits = weight.to(tl.int32, bitcast=True)
    rank = tl.cumsum((bits == least).to(tl.int32), 0)
    kept = (bits > least) | ((bits == least) & (rank <= ties))
    running = before + tl.cumsum(tl.where(kept, weight.to(tl.int32), 0), 0)
    tl.store(tokens_ptr + row, tl.min(tl.where(running > r, at, 2147483647), 0).to(tl.int64))


def draw(
    logits: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    words: torch.Tensor,
    any_top_k: bool = True,
    any_top_p: bool = True,
) -> torch.Tensor:
    """Draw a token for each row at once, steps 1 to 3: int64 [rows].

    any_top_k, any_top_p: whether some row has such a cut; if none has, its search isn't launched.

    logits: fp32 [rows, vocab], contiguous, divided by the temperature. top_k: int64 [rows], top_p,
    min_p: float64 [rows], words: int64 [rows]: as in `worker/sampling/exact_draw.py`; like a step's
    other inputs they are written by copies or by torch (`start.py`).
    """
    rows, vocab = logits.shape
    cut = constants(vocab)
    block = cut["BLOCK"]
    pieces = triton.cdiv(vocab, block)
    programs = max(1, min(pieces, PROGRAMS // rows))
    empty = partial(torch.empty, device=logits.device)
    greatest, sums = empty((2, rows, pieces), dtype=torch.float32)
    weights = empty((rows, vocab), dtype=torch.float32)
    enough = empty(rows, dtype=torch.int32)
    lows = empty((2, LEVELS.value, rows), dtype=torch.int32)
    reach = empty((2, 2, 2, rows, pieces, COLUMNS.value), dtype=torch.int32)
    tokens = empty(rows, dtype=torch.int64)

    why = f"{pieces} pieces of {block:,} logits"
    grid, elements = (rows, programs), logits.numel()
    moved = greatest.nbytes + sums.nbytes
    start(
        "draw_exponentials",
        exponentials_kernel,
        grid,
        (logits, greatest, sums, vocab),
        {"BLOCK": block},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), logits.nbytes + moved, 3 * elements, why=why),
    )
    start(
        "draw_weights",
        weights_kernel,
        grid,
        (logits, greatest, sums, min_p, weights, lows, reach, vocab),
        cut,
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), logits.nbytes + moved + weights.nbytes, 5 * elements, why=why),
    )
    searches = [
        search for search, any_of_it in ((TOP_K, any_top_k), (TOP_P, any_top_p)) if any_of_it
    ]
    find_borders(searches, weights, top_k, top_p, enough, lows, reach, programs, cut)
    chosen = rows * block
    start(
        "draw",
        draw_kernel,
        (rows,),
        (weights, top_k, top_p, words, enough, lows, reach, tokens, vocab),
        cut,
        NUM_WARPS,
        1,
        lambda: Cost([rows], reach.nbytes // 8 + 4 * chosen, 4 * chosen, why="one for each row"),
    )
    return tokens


def constants(vocab: int) -> dict[str, int]:
    """Return the tokens of a piece, and the pieces of a row, rounded up to a power of two."""
    block = max(PIECE, triton.next_power_of_2(triton.cdiv(vocab, MOST_PIECES)))
    return {"BLOCK": block, "PIECES": triton.next_power_of_2(triton.cdiv(vocab, block))}
