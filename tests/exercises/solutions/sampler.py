"""One solution of exercise 6."""

from __future__ import annotations

import torch

from engine.core.messages import RowDetail
from engine.worker.batch_rows import StepInputs
from engine.worker.sampling.sample_step import Draws, SampleStep


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
            last = self.rows.tokens[inputs.slots[index], row.start + row.num_tokens - 1]
            logits[place, last] = -torch.inf
        return super().run(inputs, drawing, logits, details)
