"""The draw of a token in Triton, one launch and no synchronisation: what `worker/draw.py` defines,
with its step numbers. It is the reference: `draw(cut(integer_weights(logits), cuts), words)`.

Weights are integers, so borders can be found without sorting: bisection over the value of a
weight finds the greatest t for which enough tokens (top_k) or enough weight (top_p) lie at t or
above, 31 passes over a row at most. Ties at the border go to the lower ids, as defined.

Grid: one program for each row. A row of 128k weights is 512 KB: after the first pass it lies in
the L2 cache. Rows without top_k or top_p skip the bisection that they don't need.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import torch_ops
from engine.kernels.launch import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

BLOCK = 4096  # tokens of a pass
NUM_WARPS = 8
NO_TOKEN = tl.constexpr(torch_ops.NO_TOKEN)


@triton.jit
def _count_and_sum(weights_ptr, vocab, least, BLOCK: tl.constexpr):
    """(how many, sum of) the weights of `least` or more."""
    counts = tl.zeros([BLOCK], tl.int32)
    sums = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab, BLOCK):
        at = first + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + at, mask=at < vocab, other=-1)
        enough = weight >= least
        counts += enough.to(tl.int32)
        sums += tl.where(enough, weight, 0)
    return tl.sum(counts, 0), tl.sum(sums, 0)


@triton.jit
def draw_kernel(
    logits_ptr,  # fp32 [rows, vocab], divided by the temperature
    weights_ptr,  # int32 [rows, vocab], scratch
    top_k_ptr,  # int64 [rows], vocab or more: off
    top_p_ptr,  # fp64 [rows], 1: off
    min_p_ptr,  # fp64 [rows], 0: off
    words_ptr,  # int64 [rows], in [0, 2^32)
    tokens_ptr,  # int64 [rows], written; NO_TOKEN for a row that isn't finite
    vocab,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0)
    logits_ptr += row.to(tl.int64) * vocab
    weights_ptr += row.to(tl.int64) * vocab
    lanes = tl.arange(0, BLOCK)

    # 1. softmax, in integers
    greatest = tl.full([BLOCK], float("-inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        at = first + lanes
        x = tl.load(logits_ptr + at, mask=at < vocab, other=float("-inf"))
        greatest = tl.maximum(greatest, tl.where(x == x, x, float("inf")))
    top = tl.max(greatest, 0)
    if tl.abs(top) == float("inf"):  # there is a NaN, or nothing finite to begin with
        tl.store(tokens_ptr + row, NO_TOKEN)
        return
    sums = tl.zeros([BLOCK], tl.float32)
    for first in range(0, vocab, BLOCK):
        at = first + lanes
        sums += tl.exp(tl.load(logits_ptr + at, mask=at < vocab, other=float("-inf")) - top)
    total = tl.sum(sums, 0)
    heaviest = tl.zeros([BLOCK], tl.int32)
    for first in range(0, vocab, BLOCK):
        at = first + lanes
        x = tl.load(logits_ptr + at, mask=at < vocab, other=float("-inf"))
        weight = (tl.exp(x - top) / total * 1073741824.0 + 0.5).to(tl.int32)  # 2^30
        heaviest = tl.maximum(heaviest, weight)
        tl.store(weights_ptr + at, weight, mask=at < vocab)
    max_weight = tl.max(heaviest, 0)
    tl.debug_barrier()  # the program reads what its other threads wrote

    # 2. min_p and top_k leave `eligible` tokens: those above `least`, and `ties` of that weight
    floor = tl.ceil(max_weight.to(tl.float64) * tl.load(min_p_ptr + row)).to(tl.int32)
    count, mass = _count_and_sum(weights_ptr, vocab, floor, BLOCK)
    top_k = tl.minimum(tl.load(top_k_ptr + row), vocab).to(tl.int32)
    least = floor
    ties = count
    if top_k < count:
        high = max_weight
        while least < high:  # the greatest weight that top_k tokens reach
            middle = least + (high - least + 1) // 2
            reach, _ = _count_and_sum(weights_ptr, vocab, middle, BLOCK)
            if reach >= top_k:
                least = middle
            else:
                high = middle - 1
        above, mass = _count_and_sum(weights_ptr, vocab, least + 1, BLOCK)
        ties = top_k - above
        mass += ties * least
    # top_p keeps the first of these that together weigh `enough`
    top_p = tl.load(top_p_ptr + row)
    if top_p < 1.0:
        enough = tl.maximum(tl.ceil(mass.to(tl.float64) * top_p).to(tl.int32), 1)
        eligible_least = least
        high = max_weight
        while least < high:
            middle = least + (high - least + 1) // 2
            _, reached = _count_and_sum(weights_ptr, vocab, middle, BLOCK)
            if reached >= enough:
                least = middle
            else:
                high = middle - 1
        _, above_mass = _count_and_sum(weights_ptr, vocab, least + 1, BLOCK)
        wanted = (enough - above_mass + least - 1) // tl.maximum(least, 1)
        ties = tl.where(least == eligible_least, tl.minimum(ties, wanted), wanted)
        mass = above_mass + ties * least

    # 3. the first token with which the running sum exceeds r
    r = ((tl.load(words_ptr + row) * mass.to(tl.int64)) >> 32).to(tl.int32)
    before = 0
    tied_before = 0
    token = 2147483647
    for first in range(0, vocab, BLOCK):
        at = first + lanes
        weight = tl.load(weights_ptr + at, mask=at < vocab, other=0)
        tied = ((weight == least) & (at < vocab)).to(tl.int32)
        rank = tied_before + tl.cumsum(tied, 0)
        kept = (weight > least) | ((tied != 0) & (rank <= ties))
        kept_weight = tl.where(kept, weight, 0)
        running = before + tl.cumsum(kept_weight, 0)
        token = tl.minimum(token, tl.min(tl.where(running > r, at, 2147483647), 0))
        before += tl.sum(kept_weight, 0)
        tied_before += tl.sum(tied, 0)
    tl.store(tokens_ptr + row, token)


def draw(
    logits: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    words: torch.Tensor,
) -> torch.Tensor:
    """Steps 1 to 3 for all rows at once: int64 [rows].

    logits: fp32 [rows, vocab], contiguous, divided by the temperature. top_k: int64 [rows], top_p,
    min_p: float64 [rows], words: int64 [rows]: as in `worker/draw.py`.
    """
    rows, vocab = logits.shape
    weights = torch.empty((rows, vocab), dtype=torch.int32, device=logits.device)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    start(
        "draw",
        draw_kernel,
        (rows,),
        (logits, weights, top_k, top_p, min_p, words, tokens, vocab),
        {"BLOCK": block_for(vocab)},
        NUM_WARPS,
        1,
        lambda: Cost([rows], 2 * logits.nbytes, 8 * logits.numel(), why="one program for each row"),
    )
    return tokens


def block_for(vocab: int) -> int:
    """Tokens of a pass: small vocabularies in one."""
    return min(BLOCK, max(256, triton.next_power_of_2(vocab)))
