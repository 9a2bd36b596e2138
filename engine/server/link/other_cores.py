"""Keep the server off the core on which the engine's loop runs.

Linux often wakes a process on the core of the one that wakes it. So each token from the engine
would make the server push the engine's loop off its core while it handles the token, and the
computing threads would wait for the loop: a quarter of the step time of a small model. On any other
core the server runs in parallel with the loop's own next work (docs/archive/NOTES.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence


class OtherCores:
    """Choose where the threads of this process may run."""

    def __init__(self) -> None:
        self._before: set[int] = set()  # CPUs before any were left

    def leave(self, cpus: Sequence[int]) -> None:
        """Keep all threads of this process, and those that they start, off `cpus` from now on.

        Does nothing where no other CPU is left, and where the system can't (macOS).
        """
        if cpus and hasattr(os, "sched_getaffinity"):
            allowed = os.sched_getaffinity(0)
            if allowed - set(cpus):
                self._before = allowed
                _run_on(allowed - set(cpus))

    def come_back(self) -> None:
        """Undo `leave`."""
        if self._before:
            _run_on(self._before)
            self._before = set()


def _run_on(cpus: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)
