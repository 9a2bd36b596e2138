"""Track steps whose tokens the host doesn't know yet.

A GPU stays busy only if the next step is ready when it finishes one. So `ModelRunner.launch` gives
a step to the device and returns, and `InFlight.result` waits for its tokens while the device
computes the next step. That step reads the tokens on the device, from `DrawnTokens`; until they
arrive, the host's rows hold `UNKNOWN` in their places.

On a CPU everything is computed when `launch` returns, and `result` only books it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from engine.core.messages import StepOutput
from engine.kernels import asynchronous, kernels_for


class InFlight:
    """Hold a launched step. Ask for results in the order of the steps."""

    def __init__(self, finish: Callable[[], StepOutput]) -> None:
        """Take what ends the step. finish: waits, books, and returns the output; called once."""
        self._finish: Callable[[], StepOutput] | None = finish
        self._output: StepOutput | None = None

    @classmethod
    def done(cls, output: StepOutput) -> InFlight:
        """Make a step with nothing to wait for."""
        return cls(lambda: output)

    def result(self) -> StepOutput:
        """Wait for the tokens and return them; a second call returns the same object.

        Raises what the device reports.
        """
        if self._finish is not None:
            self._output = self._finish()
            self._finish = None  # frees the step's tensors too
        assert self._output is not None
        return self._output


class DrawnTokens:
    """Keep the tokens that the last step drew, on the device, and the seats they belong to.

    A sequence's unknown token is always one of these: results of all earlier steps have been taken
    before a step is launched.
    """

    def __init__(self, num_seats: int) -> None:
        self.tokens = torch.zeros(1, dtype=torch.int64)
        self._places = np.zeros(num_seats, np.int64)  # of each seat, among the tokens

    def keep(self, seats: np.ndarray, tokens: torch.Tensor) -> None:
        """Keep what a step draws: `tokens[i]` for row i. Both int64 [rows]; no seat comes twice."""
        self.tokens = tokens
        self._places[seats] = np.arange(len(seats))

    def places(self, seats: np.ndarray) -> np.ndarray:
        """Return where each seat's token is, for `fill`. int64 [rows]"""
        return self._places[seats]

    def fill(self, token_ids: torch.Tensor, places: torch.Tensor) -> None:
        """Replace each `UNKNOWN` by the drawn token. Both int64 [rows], on the device.

        A sequence with nothing to draw gets 0: it ends, and nobody reads what it computes until
        then.
        """
        kernels_for(token_ids.device).take_drawn(token_ids, self.tokens, places)


LOOK_S = 5e-5
"""Seconds between two looks at a device that computes with others."""


class Clock:
    """Record when the parts of a step ended, by the device's clock or the host's.

    Marking doesn't wait for the device; `wait` does.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_device = asynchronous(device)
        self._marks: list = []

    def mark(self) -> None:
        if self._on_device:
            # blocking: a waiting thread sleeps and leaves the core to others
            event = torch.cuda.Event(enable_timing=True, blocking=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.monotonic_ns())

    def wait(self, patience: Callable[[], None] | None = None) -> int:
        """Wait until the device has passed the last mark.

        Return when that was, by `time.monotonic_ns`, or 0 if it had already passed (time
        unknown). patience: what raises when waiting has no sense any more, as for a rank that is
        gone; the device would wait for ever.
        """
        if not self._on_device:
            return self._marks[-1]
        if self._marks[-1].query():
            return 0
        if patience is None:
            self._marks[-1].synchronize()
            return time.monotonic_ns()
        while not self._marks[-1].query():
            patience()
            time.sleep(LOOK_S)
        return time.monotonic_ns()

    def spans_us(self) -> list[float]:
        """Return the microseconds from each mark to the next. Call after `wait`."""
        pairs = zip(self._marks, self._marks[1:])
        if self._on_device:
            return [1e3 * begin.elapsed_time(end) for begin, end in pairs]
        return [(end - begin) / 1e3 for begin, end in pairs]
