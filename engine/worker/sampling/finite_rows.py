"""Check that chunks of a prompt, which draw nothing and so have no logits, are finite.

The last token of a chunk has attended to all before it: where a key or value is NaN or infinite, so
are its hidden states. With a check after each chunk, nothing broken enters the prefix cache.
"""

from __future__ import annotations

import torch

from engine.worker.step_inputs import StepInputs
from engine.worker.transfers import to_device


def finite_rows(hidden: torch.Tensor, inputs: StepInputs, rows: list[int]) -> torch.Tensor:
    """Return which of the batch's `rows` ended in finite numbers: bool [len(rows)], on the device.

    hidden: [tokens, width], of a step.
    """
    last = to_device(inputs.query_start[1:][rows] - 1, hidden.device)
    return hidden[last].isfinite().all(dim=-1)
