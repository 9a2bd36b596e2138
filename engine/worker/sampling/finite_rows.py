"""Chunks of a prompt draw nothing, so no logits tell whether what was computed is any good.

The last token of a chunk has attended to all before it: where a key or value is NaN or infinite,
so are its hidden states. Asked after each chunk, nothing broken comes into the prefix cache.
"""

from __future__ import annotations

import torch

from engine.worker.batch_rows import StepInputs
from engine.worker.transfers import to_device


def finite_rows(hidden: torch.Tensor, inputs: StepInputs, rows: list[int]) -> torch.Tensor:
    """Of the batch's `rows`, which ended in finite numbers: bool [len(rows)], on the device.

    hidden: [tokens, width], of a step.
    """
    last = to_device(inputs.query_start[1:][rows] - 1, hidden.device)
    return hidden[last].isfinite().all(dim=-1)
