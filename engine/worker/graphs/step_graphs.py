"""State what the worker needs of steps that are captured once and replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.kernels.batch import LayerCache
from engine.models.causal_lm import CausalLM
from engine.trace.recorder import Recorder
from engine.worker.in_flight import DrawnTokens
from engine.worker.step_inputs import StepInputs


@dataclass(frozen=True)
class GraphShape:
    """State the sizes that captured steps are made for."""

    model: CausalLM
    caches: list[LayerCache]
    max_rows: int  # of a step, at most
    table_width: int  # blocks of the longest sequence
    block_size: int  # tokens
    budget: int  # tokens of a step, at most


class StepGraphs(Protocol):
    """Replay steps that `make` of a platform captured."""

    def fits(self, inputs: StepInputs) -> bool:
        """Return whether this step can be replayed."""
        ...

    def run(
        self, inputs: StepInputs, drawn: DrawnTokens | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Replay a step: (hidden states, logits, the place of each row's greatest logit).

        Logits are None where the step has prompts. The next run overwrites what this one returns.
        """
        ...


class MakeGraphs(Protocol):
    """Capture steps for a shape. captured: only these numbers of rows; None: all."""

    def __call__(
        self, shape: GraphShape, recorder: Recorder, captured: list[int] | None = None
    ) -> StepGraphs: ...
