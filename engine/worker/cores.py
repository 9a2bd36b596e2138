"""Cores: while steps are computed, each thread of the CPU kernels stays on a core of its own.

A kernel is done when its slowest thread is. After a pause all threads but one sleep, and where
Linux wakes them is a guess: on virtual machines often on the core of the one who wakes them (an
idle virtual core looks as if its host had taken it away), and then two threads share one core while
another is idle, for a tick of the scheduler or more, 4 to 30 ms. Bound, they are where they should
be, and everybody else's threads, which aren't, are moved out of their way: benchmarks/results/
NOTES.md has the figures.

Only where the engine has all cores: with fewer threads, or under a quota, other engines could be
bound to the very same ones. And not in the overlapped loop, whose threads take turns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from struct import Struct

from engine.worker.machine import physical_cores, usable_cores

_BIND = Struct("2q").pack  # struct BindArgs in threads.cpp
_SET_BYTES = 128  # sizeof(cpu_set_t)

BindThreads = Callable[[bytes], object]


def cores_to_bind(num_threads: int) -> list[set[int]]:
    """The CPUs of each thread's core; empty if they are to stay free."""
    cores = usable_cores()
    named = all(cpu < 8 * _SET_BYTES for core in cores for cpu in core)
    return cores if named and 1 < num_threads == len(cores) == physical_cores() else []


class Cores:
    """`with cores:` around many steps: the calling thread and those that compute with it are bound.
    At its end all may run anywhere again; a thread that is started within inherits a core."""

    def __init__(self, cores: Sequence[set[int]] = (), bind_threads: BindThreads | None = None):
        """cores: the CPUs of each thread's core, the calling one's first; bind_threads: the native
        function. Without either, nothing is bound."""
        self._bind_threads = bind_threads if cores else None
        self._cores = cores
        self.own_cpus: list[int] = []  # those of the calling thread's core, while it is held

    def hold(self) -> None:
        """Bind. The threads are those of the calling one."""
        self._bind(self._cores)
        if self._bind_threads is not None:
            self.own_cpus = sorted(self._cores[0])

    def release(self) -> None:
        """Called by the thread that held."""
        self._bind([set().union(*self._cores)] * len(self._cores))
        self.own_cpus = []

    def _bind(self, cores: Sequence[set[int]]) -> None:
        if self._bind_threads is not None:
            masks = (sum(1 << cpu for cpu in core) for core in cores)
            sets = b"".join(mask.to_bytes(_SET_BYTES, "little") for mask in masks)
            buffer = ctypes.create_string_buffer(sets)
            self._bind_threads(_BIND(ctypes.addressof(buffer), len(cores)))

    def __enter__(self) -> None:
        self.hold()

    def __exit__(self, *exception: object) -> None:
        self.release()
