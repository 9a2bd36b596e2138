"""Swapping beside computing: a CUDA stream of its own, and the two places where it is waited for.

A swap begins when all that was launched before it has run, for it reads pages that the last step
wrote and writes pages that it may have read. And nothing that touches pages may be launched until
`wait`: it lets the computing stream go on only when the swaps have arrived. In between the host
prepares the step, and its inputs travel. No call here holds up the host.

Swaps among themselves keep their order: a host block that was just filled can be read by the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


class SwapStream:
    """`run` swaps, `wait` once before pages are used."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._arrived: torch.cuda.Event | None = None  # when what runs here has ended

    def run(self, swap: Callable[[], None]) -> None:
        """Launch `swap` here, behind all that the computing stream has been given."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            swap()
        self._arrived = self.stream.record_event()

    def wait(self) -> None:
        """What is launched from now on finds the swapped blocks in their places."""
        if self._arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
            self._arrived = None
