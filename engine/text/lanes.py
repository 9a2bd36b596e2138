"""Do work on texts outside the event loop, so that nobody else waits for it.

A lane is a few threads. What is long waits only for other long work, and what is short only for
short: so the longest texts can fill their lane, and ordinary requests still pass.
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
"""Characters: what is shorter takes about a millisecond."""

SHORT = ThreadPoolExecutor(2, "short text")
LONG = ThreadPoolExecutor(2, "long text")
FOREIGN = ThreadPoolExecutor(1, "foreign templates")  # it only waits for a process


def lane_for(size: int) -> ThreadPoolExecutor:
    """The lane for so many characters, or tokens."""
    return LONG if size > LONG_TEXT else SHORT


class Overdue(BaseException):
    """Raised in work that has had its time. No part of the work is to catch it."""


async def in_lane(lane: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """The result of `work()`, done in a thread of `lane`."""
    return await asyncio.get_running_loop().run_in_executor(lane, work)


async def in_lane_within(lane: ThreadPoolExecutor, work: Callable[[], T], seconds: float) -> T:
    """Like `in_lane`, for work in Python: it is interrupted after `seconds`, from its own start.

    Raises `TimeoutError` then. Work that nobody waits for any more is interrupted at once.
    """
    loop = asyncio.get_running_loop()
    job = _Interruptible(work)
    timers: list[asyncio.TimerHandle] = []  # the one that runs

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
    """Work in whose thread `interrupt` raises `Overdue`, in the midst of whatever Python runs."""

    def __init__(self, work: Callable[[], T]):
        self.started = 0.0  # of time.monotonic()
        self._work = work
        self._lock = threading.Lock()
        self._thread: int | None = None  # while it runs
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
            with self._lock:  # no interrupt comes any more, and one that is on its way is recalled
                self._thread = None
                _raise_in(threading.get_ident(), None)

    def interrupt(self) -> None:
        with self._lock:
            if not self._over and self._thread is not None:
                _raise_in(self._thread, Overdue)
            self._over = True


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
