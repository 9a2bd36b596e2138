"""One solution of exercise 6."""

from __future__ import annotations

import torch

from engine.core.messages import RowDetail
from engine.worker.sampling.sample_step import Draws, SampleStep
from engine.worker.step_inputs import StepInputs


class NoRepeat(SampleStep):
    def run(
        self,
        inputs: StepInputs,
        drawing: list[int],
        logits: torch.Tensor,
        details: dict[str, RowDetail],
        greatest: torch.Tensor | None = None,
    ) -> Draws:
        logits = logits.clone()
        for place, index in enumerate(drawing):
            row = inputs.rows[index]
            last = self.seats.tokens[inputs.seats[index], row.start + row.num_tokens - 1]
            logits[place, last] = -torch.inf
        return super().run(inputs, drawing, logits, details)
