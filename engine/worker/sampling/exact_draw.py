"""Draw one token for each row from adjusted logits, so exactly defined that any machine repeats it.

The definition, for one row. x: fp32 logits after all rules and penalties, divided by the
temperature; u: one word in [0, 2^32) from Philox, keyed by the seed, counted by the position.

1. p = softmax(x) in fp32. Weight of token i: w_i = floor(p_i · 2^30 + ½), an integer. From here on
   all sums are of integers, so none depends on its order: not on the batch, not on the number of
   threads, not on the device. (A token less probable than 2^-31 has weight 0 and is never drawn.
   All weights of a row sum to 2^30, give or take the rounding, so int32 holds every sum.)
2. Tokens are ranked by weight, greatest first, equal ones by lower id. Kept are
   - min_p: those with w_i ≥ ceil(min_p · max w);
   - top_k: of these the first k;
   - top_p: of these the first ones, each of which has less than ceil(top_p · S) weight before it,
     where S is the sum of what min_p and top_k left. (Both products are taken in float64.)
3. T = sum of the kept weights, r = floor(u · T / 2^32). The token is the first one, by id, with
   which the running sum of kept weights exceeds r: token i is drawn with probability w_i / T.

Only the softmax may round differently on another device, or in the kernel that draws on a CPU. Then
a token can differ where r falls within that rounding of a border, the more rarely the smaller the
vocabulary is. A sequence's draws are all made by the same code.

Temperature 0 doesn't come here: it takes the token with the greatest logit, the lowest id if equal.

Where a logit is NaN, or the greatest one is infinite, nothing can be drawn: all weights of the row
are 0, and its token is `NO_TOKEN`, as at temperature 0.

Weights are kept in rows padded with zeros to a multiple of 32, so that a row is whole chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from engine.placeholders import NO_TOKEN
from engine.rounding import ceil_div

ONE = 2**30  # weight of probability 1
CHUNK = 32  # tokens
CANDIDATE_CHUNKS = 128  # chunks in which top-k and top-p look first


class Cuts(NamedTuple):
    """State what to cut in each row. Each [rows]."""

    top_k: torch.Tensor  # int64, at least 1; the size of the vocabulary or more: off
    top_p: torch.Tensor  # float64, 1: off
    min_p: torch.Tensor  # float64, 0: off

    def of(self, rows: torch.Tensor) -> Cuts:
        return Cuts(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def integer_weights(logits: torch.Tensor) -> torch.Tensor:
    """Compute the integer weights, step 1.

    `logits`: fp32 [rows, vocab]. Returns int32 [rows, vocab rounded up to chunks].
    """
    rows, vocab = logits.shape
    half = torch.tensor(0.5, device=logits.device)
    scaled = torch.softmax(logits, dim=-1)
    broken = scaled[:, 0].isnan()  # then the whole row is: each is divided by their sum
    if bool(broken.any()):
        scaled[broken] = 0.0
    torch.add(half, scaled, alpha=float(ONE), out=scaled)
    padded = ceil_div(vocab, CHUNK) * CHUNK
    weights = torch.empty((rows, padded), dtype=torch.int32, device=logits.device)
    weights[:, vocab:] = 0
    weights[:, :vocab] = scaled  # the conversion drops the fraction
    return weights


def cut(weights: torch.Tensor, cuts: Cuts) -> torch.Tensor:
    """Cut tokens by sorting whole rows, step 2.

    Return the weights with 0 for tokens that are cut.
    """
    floor = _min_p_floor(weights, cuts.min_p)
    return _keep(weights, _border(_ascending(weights), weights, floor, cuts, None))


def keep_min_p(weights: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Cut tokens by min_p alone, step 2 without ranking. `min_p`: float64 [rows]."""
    return torch.where(weights >= _min_p_floor(weights, min_p)[:, None], weights, 0)


def draw(weights: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """Draw a token for each row, step 3.

    `weights`: int32 [rows, chunks · 32]; `words`: int64 [rows]. Returns int64 [rows], token ids;
    `NO_TOKEN` for a row of zeros.

    Two levels, so that no running sum over the whole vocabulary is written: first the chunk in
    which the sum passes r, then the token in it.
    """
    chunks = weights.unflatten(-1, (-1, CHUNK))
    sums = chunks.sum(dim=-1, dtype=torch.int32).cumsum(dim=-1, dtype=torch.int32)
    target = ((words * sums[:, -1]) >> 32).to(torch.int32)[:, None]  # the product is below 2^63
    chunk = torch.searchsorted(sums, target, right=True)  # [rows, 1]
    chunk.clamp_(max=sums.shape[1] - 1)  # in a row of zeros no sum exceeds its target
    inside = chunks.gather(1, chunk[:, :, None].expand(-1, -1, CHUNK))[:, 0]
    before = sums.gather(1, chunk) - inside.sum(dim=-1, keepdim=True, dtype=torch.int32)
    running = inside.cumsum(dim=-1, dtype=torch.int32) + before
    tokens = (chunk * CHUNK + torch.searchsorted(running, target, right=True))[:, 0]
    return torch.where(sums[:, -1] > 0, tokens, NO_TOKEN)


def cut_and_draw(weights: torch.Tensor, cuts: Cuts, words: torch.Tensor) -> torch.Tensor:
    """Cut and draw (steps 2 and 3), mostly without sorting.

    Draws the same tokens as `draw(cut(weights, cuts), words)`.

    The 128 chunks with the greatest maxima hold every token that outweighs the best of the other
    chunks. Nearly always the last kept token is one of those, and only 4,096 tokens need sorting in
    place of a vocabulary. The rows where it isn't are sorted whole.
    """
    chunks = weights.unflatten(-1, (-1, CHUNK))
    if chunks.shape[1] <= CANDIDATE_CHUNKS:
        return draw(cut(weights, cuts), words)
    best = chunks.amax(dim=-1).topk(CANDIDATE_CHUNKS + 1, dim=-1)
    bound = best.values[:, -1:].contiguous()
    chosen = best.indices[:, :-1].sort(dim=-1).values  # by id, so that ties stay in order
    some = chunks.gather(1, chosen[:, :, None].expand(-1, -1, CHUNK)).flatten(1)
    floor = torch.ceil(best.values[:, 0].double() * cuts.min_p).to(torch.int32)
    border = _border(_ascending(some), weights, floor, cuts, bound)
    # (a row without any weight is among those whose border isn't known)
    local = draw(_keep(some, border), words).clamp_(min=0)[:, None]
    tokens = (chosen.gather(1, local // CHUNK) * CHUNK + local % CHUNK)[:, 0]
    if not bool(border.known.all()):
        rest = (~border.known).nonzero()[:, 0]
        tokens[rest] = draw(cut(weights[rest], cuts.of(rest)), words[rest])
    return tokens


# --------------------------------------------------------------------------------------- details


class _Border(NamedTuple):
    """Mark where the kept tokens of each row end: those above `least` are kept, and `ties` more."""

    least: torch.Tensor  # int32 [rows, 1], the least weight that is kept
    ties: torch.Tensor  # int64 [rows, 1], how many tokens of exactly that weight are kept
    crowded: torch.Tensor  # bool [rows], more tokens than that have it
    known: torch.Tensor  # bool [rows], false: the border lies beyond the tokens looked at


def _min_p_floor(weights: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Return the least weight that min_p keeps, int32 [rows]."""
    return torch.ceil(weights.amax(dim=-1).double() * min_p).to(torch.int32)


def _border(
    ranked: torch.Tensor,
    weights: torch.Tensor,
    floor: torch.Tensor,
    cuts: Cuts,
    bound: torch.Tensor | None,
) -> _Border:
    """Find the border among `ranked`, int32 [rows, count], ascending.

    `ranked` holds all weights of a row, or (`bound`: int32 [rows, 1]) some that include all greater
    than `bound`. `weights`: whole rows.
    """
    count = ranked.shape[1]
    top_k = cuts.top_k[:, None].clamp(max=count)
    floor = floor[:, None]
    running = ranked.cumsum(dim=-1, dtype=torch.int32)
    everything = running[:, -1:]
    # min_p and top_k leave the last `eligible` tokens of `ranked`
    eligible = torch.minimum(top_k, count - torch.searchsorted(ranked, floor))
    below = running.gather(1, (count - eligible - 1).clamp(min=0))
    total = everything - torch.where(eligible < count, below, 0)
    known = torch.ones_like(floor, dtype=torch.bool)
    if bound is not None:
        unlimited = (floor == 0) & (cuts.top_k[:, None] >= weights.shape[1])
        safe = count - torch.searchsorted(ranked, bound, right=True)
        known = unlimited | (floor > bound) | (cuts.top_k[:, None] <= safe)
        total = torch.where(unlimited, weights.sum(-1, keepdim=True, dtype=torch.int32), total)
    # top_p drops from the bottom as long as the rest still weighs enough
    enough = torch.ceil(total.double() * cuts.top_p[:, None]).to(torch.int32)
    kept = count - torch.searchsorted(running, everything - enough, right=True)
    kept = torch.minimum(kept, eligible).clamp_(min=1)
    least = ranked.gather(1, count - kept)
    above = count - torch.searchsorted(ranked, least, right=True)
    at_least = count - torch.searchsorted(ranked, least)
    if bound is not None:
        known &= least > bound
    crowded = (at_least > kept) & (least > 0)
    return _Border(least, kept - above, crowded[:, 0], known[:, 0])


def _keep(weights: torch.Tensor, border: _Border) -> torch.Tensor:
    """Set every token beyond the border to 0; among equal ones the lower ids stay."""
    kept = torch.where(weights >= border.least, weights, 0)
    if bool(border.crowded.any()):
        rows = border.crowded.nonzero()[:, 0]
        some = kept[rows]
        tied = some == border.least[rows]
        surplus = tied & (tied.cumsum(dim=-1, dtype=torch.int32) > border.ties[rows])
        kept[rows] = some.masked_fill_(surplus, 0)
    return kept


def _ascending(weights: torch.Tensor) -> torch.Tensor:
    """Sort each row. On the CPU NumPy's vectorised sort is ten times as fast as torch's."""
    if weights.device.type == "cpu":
        return torch.from_numpy(np.sort(weights.numpy(), axis=-1))
    return weights.sort(dim=-1).values
