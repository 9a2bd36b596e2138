"""Compute the model's own log-probabilities, of the drawn token and of the most probable ones.

They are taken before every parameter. Ranks follow the logits, greatest first, equal ones by lower
id. All numbers of a position come from one log_softmax, so the drawn token's is bit for bit the one
in the list of the most probable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from engine.core.messages import RowDetail, TokenLogprobs
from engine.worker.seats import Seats
from engine.worker.step_inputs import StepInputs

FIRST_LOOK = 8  # most probable tokens among which a drawn one is looked for first
SPARE = 16  # candidates beyond the wanted ones, so that ties at the end can be ordered
SLICE = 128  # positions of a prompt that are computed at once: [128, vocab] fp32
MANY = 256  # candidates: rows that want more are computed by themselves, others don't sort as many


def token_logprobs(
    logits: torch.Tensor,
    token_ids: np.ndarray,
    counts: list[int],
    named: Mapping[int, Sequence[int]] | None = None,
) -> list[TokenLogprobs]:
    """Return one `TokenLogprobs` for each row.

    `logits`: fp32 [rows, vocab], the model's own. `token_ids`: int64 [rows]. `counts`: how many of
    the most probable tokens each row wants. `named`: row → the tokens it wants instead.
    """
    if not counts:
        return []
    if len(counts) > 1 and max(counts) > MANY:
        named = named or {}
        return [
            token_logprobs(
                logits[row : row + 1],
                token_ids[row : row + 1],
                counts[row : row + 1],
                {0: named[row]} if row in named else None,
            )[0]
            for row in range(len(counts))
        ]
    logprobs = torch.log_softmax(logits, dim=-1)
    ids = torch.from_numpy(token_ids).to(logits.device)[:, None]
    own = logprobs.gather(1, ids)[:, 0].tolist()
    top = most_probable(logits, max(*counts, FIRST_LOOK))
    ranks = _ranks(logits, ids, top).tolist()
    top = top[:, : max(counts)]
    top_ids, top_logprobs = top.tolist(), logprobs.gather(1, top).tolist()
    if named:
        counts = list(counts)
        for row, its in named.items():
            counts[row], top_ids[row] = len(its), list(its)
            top_logprobs[row] = logprobs[row, torch.tensor(its, device=logits.device)].tolist()
    return [
        TokenLogprobs(token, logprob, rank, best[:count], best_logprobs[:count])
        for token, logprob, rank, best, best_logprobs, count in zip(
            token_ids.tolist(), own, ranks, top_ids, top_logprobs, counts
        )
    ]


def prompt_logprobs(
    compute_logits: Callable[[np.ndarray], torch.Tensor],
    seats: Seats,
    inputs: StepInputs,
    details: dict[str, RowDetail],
) -> None:
    """Put the prompt log-probabilities that a step's requests want into `details`, by request.

    Waits for the device. compute_logits: places of tokens in the step, int64 [n] → [n, vocab].
    """
    for row, seat, first in zip(inputs.rows, inputs.seats.tolist(), inputs.query_start):
        new = seats.new(seat)
        wanted = new.params.prompt_logprobs
        count = min(row.num_tokens, new.num_prompt_tokens - 1 - row.start)
        if wanted is None or count < 1:
            continue
        targets = seats.tokens[seat, row.start + 1 : row.start + 1 + count].astype("int64")
        entries: list[TokenLogprobs] = []
        for begin in range(0, count, SLICE):
            end = min(begin + SLICE, count)
            logits = compute_logits(np.arange(first + begin, first + end)).float()
            entries += token_logprobs(logits, targets[begin:end], [wanted] * (end - begin))
        details[row.request_id] = RowDetail(prompt_logprobs=entries)


def most_probable(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ids of each row's `count` greatest logits, greatest first, equal ones by lower id.

    `logits`: [rows, vocab]. Returns int64 [rows, count], fewer if the vocabulary has fewer.
    """
    vocab = logits.shape[1]
    count = min(count, vocab)
    if count == 0:
        return torch.empty((len(logits), 0), dtype=torch.int64, device=logits.device)
    values, ids = logits.topk(min(count + SPARE, vocab), dim=-1)
    ids, values = _by_id_where_equal(ids, values)
    if values.shape[1] < vocab:
        # if all candidates are tied, tokens with lower ids may be missing among them
        for row in (values[:, count - 1] == values[:, -1]).nonzero()[:, 0].tolist():
            tied = (logits[row] >= values[row, count - 1]).nonzero()[:, 0]
            ordered, _ = _by_id_where_equal(tied[None], logits[row, tied][None])
            ids[row, :count] = ordered[0, :count]
    return ids[:, :count]


def _ranks(logits: torch.Tensor, ids: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """Return the ranks, from 1, of tokens `ids`, int64 [rows, 1].

    Most are found in `top`, the best of each row in order; for the others the tokens ahead of them
    are counted.
    """
    found = top == ids
    ranks = found.int().argmax(dim=-1) + 1
    missing = (~found.any(dim=-1)).nonzero()[:, 0]
    if len(missing):
        some, its = logits[missing], ids[missing]
        own = some.gather(1, its)
        places = torch.arange(some.shape[1], device=logits.device)
        ahead = (some > own) | ((some == own) & (places < its))
        ranks[missing] = ahead.sum(dim=-1) + 1
    return ranks


def _by_id_where_equal(
    ids: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order candidates by value, greatest first, equal ones by id. Both [rows, candidates]."""
    ids, order = ids.sort(dim=-1)
    values, by_value = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return ids.gather(1, by_value), values
