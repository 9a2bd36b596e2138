"""Swap beside computing, on a CUDA stream of its own that is waited for at two places.

A swap begins when all earlier launches have run, because it reads pages that the last step wrote
and writes pages that it may have read. Nothing that touches pages may be launched before `wait`,
which holds the computing stream until the swaps have arrived. Meanwhile the host prepares the step,
and its inputs travel. No call here holds up the host.

Swaps keep their order among themselves: a host block that was just filled can be read by the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class SwapStream:
    """Run swaps: `run` launches one, `wait` comes once before pages are used."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._arrived: torch.cuda.Event | None = None  # passed when all that runs here has ended

    def run(self, swap: Callable[[], None]) -> None:
        """Launch `swap` here, after everything that the computing stream has been given."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            swap()
        self._arrived = self.stream.record_event()

    def wait(self) -> None:
        """Make later launches on the computing stream wait for the swapped blocks."""
        if self._arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
            self._arrived = None
