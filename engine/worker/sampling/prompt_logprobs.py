"""Compute log-probabilities of a prompt's own tokens, each from the position before it."""

from __future__ import annotations

import torch

from engine.core.messages import RowDetail, TokenLogprobs
from engine.models.causal_lm import CausalLM
from engine.worker.sampling.logprobs import token_logprobs
from engine.worker.seats import Seats
from engine.worker.step_inputs import StepInputs

SLICE = 128  # positions whose log-probabilities are computed at once: [128, vocab] fp32


def prompt_logprobs(
    model: CausalLM,
    seats: Seats,
    inputs: StepInputs,
    hidden: torch.Tensor,
    details: dict[str, RowDetail],
) -> None:
    """Put the prompt log-probabilities that a step's requests want into `details`, by request.

    Waits for the device. hidden: [tokens, width], of all tokens of the step.
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
            logits = model.compute_logits(hidden[first + begin : first + end]).float()
            entries += token_logprobs(logits, targets[begin:end], [wanted] * (end - begin))
        details[row.request_id] = RowDetail(prompt_logprobs=entries)
