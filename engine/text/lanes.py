"""Run work on texts outside the event loop, so that it delays no other request.

A lane is a few threads. Long work waits only for long work, and short work only for short work: the
longest texts may fill their lane, while ordinary requests still pass.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")

LONG_TEXT = 4_000
"""Characters: a shorter text takes about a millisecond."""

SHORT = ThreadPoolExecutor(2, "short text")
LONG = ThreadPoolExecutor(2, "long text")
FOREIGN = ThreadPoolExecutor(1, "foreign templates")  # its thread only waits for a process
GRAMMARS = ThreadPoolExecutor(1, "grammars")  # as does this one


def lane_for(size: int) -> ThreadPoolExecutor:
    """Choose the lane for this number of characters, or tokens."""
    return LONG if size > LONG_TEXT else SHORT


class Overdue(BaseException):
    """Interrupt work that exceeded its time. The work must not catch it."""


async def in_lane(lane: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run `work()` on a thread of `lane`, and return its result."""
    return await asyncio.get_running_loop().run_in_executor(lane, work)


async def in_lane_within(lane: ThreadPoolExecutor, work: Callable[[], T], seconds: float) -> T:
    """Run Python work as `in_lane` does, and interrupt it `seconds` after its start.

    Raises `TimeoutError` then. Work whose caller no longer waits is interrupted immediately.
    """
    loop = asyncio.get_running_loop()
    job = _Interruptible(work)
    timers: list[asyncio.TimerHandle] = []  # the running one

    def check() -> None:
        left = job.started + seconds - time.monotonic() if job.started else seconds
        if left <= 0:
            job.interrupt()
        else:
            timers[:] = [loop.call_later(left, check)]

    timers.append(loop.call_later(seconds, check))
    try:
        return await in_lane(lane, job)
    except Overdue:
        raise TimeoutError from None
    except asyncio.CancelledError:
        job.interrupt()
        raise
    finally:
        timers[-1].cancel()


class _Interruptible(Generic[T]):
    """Run work on a thread, in which `interrupt` raises `Overdue` between any two Python
    instructions."""

    def __init__(self, work: Callable[[], T]):
        self.started = 0.0  # of time.monotonic()
        self._work = work
        self._lock = threading.Lock()
        self._thread: int | None = None  # while the work runs
        self._over = False

    def __call__(self) -> T:
        with self._lock:
            if self._over:
                raise Overdue
            self.started = time.monotonic()
            self._thread = threading.get_ident()
        try:
            return self._work()
        finally:
            with self._lock:  # no further interrupt can come, and a pending one ends here
                self._thread = None
                if self._over:
                    _end_interrupts()

    def interrupt(self) -> None:
        with self._lock:
            if not self._over and self._thread is not None:
                _raise_in(self._thread, Overdue)
            self._over = True


class _Last(BaseException):
    """End the interrupts of a thread."""


def _end_interrupts() -> None:
    """Take the interrupt that may be pending in this thread.

    It can't be recalled: CPython would look for it at every call of every thread from then on. So
    another one takes its place, and is awaited.
    """
    try:
        _raise_in(threading.get_ident(), _Last)
        while True:  # a loop's turns are where it comes
            pass
    except _Last:
        return


def _raise_in(thread: int, error: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
