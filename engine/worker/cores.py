"""Bind each thread of the CPU kernels to its own core while steps are computed.

A kernel ends when its slowest thread does. After a pause all threads but one sleep, and Linux
guesses where to wake them. On virtual machines it often picks the core of the thread that wakes
them (an idle virtual core looks as if its host had taken it away). Then two threads share one core
while another is idle, for one tick of the scheduler or more, 4 to 30 ms. Binding prevents this,
and the scheduler moves other threads, which aren't bound, out of the way: figures are in
docs/archive/NOTES.md.

Threads are bound only if the engine has all cores: with fewer threads, or under a quota, other
engines could be bound to the same cores. The overlapped loop doesn't bind: its threads take turns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from struct import Struct

from engine.worker.host import physical_cores, usable_cores

_BIND = Struct("2q").pack  # struct BindArgs in threads.cpp
_SET_BYTES = 128  # sizeof(cpu_set_t)

BindThreads = Callable[[bytes], object]


def cores_to_bind(num_threads: int) -> list[set[int]]:
    """Return the CPUs of each thread's core; empty if threads are not to be bound."""
    cores = usable_cores()
    named = all(cpu < 8 * _SET_BYTES for core in cores for cpu in core)
    return cores if named and 1 < num_threads == len(cores) == physical_cores() else []


class Cores:
    """Bind the calling thread and those that compute with it: `with cores:` around many steps.

    At the end all threads may run anywhere again. A thread that is started within inherits a core.
    """

    def __init__(self, cores: Sequence[set[int]] = (), bind_threads: BindThreads | None = None):
        """Take the cores and the function that binds. Without either, nothing is bound.

        cores: the CPUs of each thread's core, the calling one's first. bind_threads: the native
        function.
        """
        self._bind_threads = bind_threads if cores else None
        self._cores = cores
        self.own_cpus: list[int] = []  # those of the calling thread's core, while it is bound

    def hold(self) -> None:
        """Bind the calling thread and its computing threads."""
        self._bind(self._cores)
        if self._bind_threads is not None:
            self.own_cpus = sorted(self._cores[0])

    def release(self) -> None:
        """Unbind. Must be called by the thread that called `hold`."""
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
