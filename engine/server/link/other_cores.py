"""The server keeps off the core on which the engine's loop runs.

Linux likes to wake a process on the core of the one that wakes it. So a token that the engine hands
over would make the server push the engine's loop off its core for as long as the answer takes, and
the threads that compute would wait for it: a quarter of the time of a small model's step. On any
other core the server runs beside the loop's own work, which comes next (benchmarks/results/
NOTES.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence


class OtherCores:
    """Where the threads of this process may run."""

    def __init__(self) -> None:
        self._before: set[int] = set()  # CPUs, before any were left

    def leave(self, cpus: Sequence[int]) -> None:
        """From now on all threads of this process, and those that they start, keep off `cpus`.
        Without effect where nothing else is left, and where the system can't (macOS)."""
        if cpus and hasattr(os, "sched_getaffinity"):
            allowed = os.sched_getaffinity(0)
            if allowed - set(cpus):
                self._before = allowed
                _run_on(allowed - set(cpus))

    def come_back(self) -> None:
        """Undo it."""
        if self._before:
            _run_on(self._before)
            self._before = set()


def _run_on(cpus: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)
