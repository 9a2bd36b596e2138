"""Steps whose tokens the host doesn't know yet.

A GPU is kept busy only if the next step lies ready when it has done one. So `ModelRunner.launch`
gives a step to the device and comes back, and `InFlight.result` waits for its tokens, while the
device computes the step after it. That one reads them on the device, where `DrawnTokens` keeps
them; in the host's rows `UNKNOWN` stands in their places until then.

On a CPU all has been computed when `launch` returns, and `result` only books it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from engine.core.messages import StepOutput
from engine.kernels import asynchronous, kernels_for


class InFlight:
    """A launched step. Results are to be asked for in the order of the steps."""

    def __init__(self, finish: Callable[[], StepOutput]) -> None:
        """finish: waits, books, and says what came out; called once."""
        self._finish: Callable[[], StepOutput] | None = finish
        self._output: StepOutput | None = None

    @classmethod
    def done(cls, output: StepOutput) -> InFlight:
        """A step with nothing to wait for."""
        return cls(lambda: output)

    def result(self) -> StepOutput:
        """The tokens, as soon as they are there. Asked again, the same object. Raises what the
        device reports."""
        if self._finish is not None:
            self._output = self._finish()
            self._finish = None  # and with it the step's tensors
        assert self._output is not None
        return self._output


class DrawnTokens:
    """The tokens that the last step has drawn, on the device, and whose they are.

    A sequence's unknown token is always one of these: what the step before it drew has been asked
    for when a step is launched."""

    def __init__(self, num_slots: int) -> None:
        self.tokens = torch.zeros(1, dtype=torch.int64)
        self._places = np.zeros(num_slots, np.int64)  # of each slot, among the tokens

    def keep(self, slots: np.ndarray, tokens: torch.Tensor) -> None:
        """What a step draws: of row i, `tokens[i]`. Both int64 [rows]; no slot comes twice."""
        self.tokens = tokens
        self._places[slots] = np.arange(len(slots))

    def places(self, slots: np.ndarray) -> np.ndarray:
        """Where each slot's token is, for `fill`. int64 [rows]"""
        return self._places[slots]

    def fill(self, token_ids: torch.Tensor, places: torch.Tensor) -> None:
        """Put the drawn token wherever `UNKNOWN` stands, 0 for a sequence with none to draw (it
        ends, what it computes until then nobody reads). Both int64 [rows], on the device."""
        kernels_for(token_ids.device).take_drawn(token_ids, self.tokens, places)


class Clock:
    """When the parts of a step ended: by the device's own clock, which isn't waited for until
    `wait`, or by the host's."""

    def __init__(self, device: torch.device) -> None:
        self._on_device = asynchronous(device)
        self._marks: list = []

    def mark(self) -> None:
        if self._on_device:
            # blocking: who waits sleeps, and leaves the core to others
            event = torch.cuda.Event(enable_timing=True, blocking=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter_ns())

    def wait(self) -> int:
        """Until the device has passed the last mark. Returns when that was, by
        `time.perf_counter_ns`; 0 if it had passed it already, nobody knows when."""
        if not self._on_device:
            return self._marks[-1]
        if self._marks[-1].query():
            return 0
        self._marks[-1].synchronize()
        return time.perf_counter_ns()

    def spans_us(self) -> list[float]:
        """Microseconds from each mark to the next one. After `wait`."""
        pairs = zip(self._marks, self._marks[1:])
        if self._on_device:
            return [1e3 * begin.elapsed_time(end) for begin, end in pairs]
        return [(end - begin) / 1e3 for begin, end in pairs]
