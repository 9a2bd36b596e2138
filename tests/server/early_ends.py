"""Ends a request at every point at which it can end: each await, each call of a function.

    points = Points(at=3, act=task.cancel); loop.set_task_factory(points.task)

counts the awaits of all tasks that are made from then on, and acts at the given one. `Fault` raises
in the given call of a function of ours.
"""

from __future__ import annotations

import asyncio
import dis
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

SERVER = Path(__file__).resolve().parents[2] / "engine" / "server"
TEXT = SERVER.parent / "text"
OURS = tuple(
    str(path)
    for folder in (SERVER / "link", SERVER / "answering", SERVER / "telemetry", TEXT)
    for path in folder.glob("*.py")
    if path.name != "lanes.py"  # threads, which a trace function can stop from starting
)
ROUTES = tuple(str(SERVER / "routes" / name) for name in ("completions.py", "chat.py"))


class Points:
    """Counts awaits; calls `act` at number `at`."""

    def __init__(self, at: int, act: Callable[[], object]):
        self.at = at
        self.act = act
        self.count = 0

    def task(self, loop, coroutine, **options):
        return asyncio.Task(self._watched(coroutine), loop=loop, **options)

    async def _watched(self, coroutine):
        return await _Steps(coroutine, self)

    def reached(self) -> None:
        self.count += 1
        if self.count == self.at:
            self.act()


class _Steps:
    """Runs a coroutine and says when it waits."""

    def __init__(self, coroutine, points: Points):
        self.coroutine = coroutine
        self.points = points

    def __await__(self):
        go_on = partial(self.coroutine.send, None)
        while True:
            try:
                waits_for = go_on()
            except StopIteration as end:
                return end.value
            self.points.reached()
            try:
                yield waits_for
                go_on = partial(self.coroutine.send, None)
            except BaseException as error:
                go_on = partial(self.coroutine.throw, error)


class Injected(Exception):
    """What `Fault` raises."""


class Fault:
    """`with fault:` call number `at` of a function of ours raises, unless it is made to let go of a
    request, or outside of the tasks of requests (`wanted`): news of the engine are no request's
    until they are passed on to its connection."""

    def __init__(self, at: int, wanted: Callable[[], bool]):
        self.at = at
        self.wanted = wanted
        self.count = 0
        self.where = ""

    def __enter__(self) -> Fault:
        self._before = sys.gettrace()  # coverage's
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame, event, argument):
        code = frame.f_code
        if event != "call" or code.co_filename not in OURS + ROUTES or _goes_on(frame):
            return None
        callers, outer = set(), frame
        while outer is not None:
            callers.add(outer.f_code.co_name)
            outer = outer.f_back
        if not (self.wanted() or callers & {"_pass_on", "take"}) or callers & {"close", "_release"}:
            return None
        self.count += 1
        if self.count == self.at:
            self.where = f"{Path(code.co_filename).name}:{code.co_name}"
            raise Injected(self.where)
        return None


def _goes_on(frame) -> bool:
    """Whether a coroutine or generator goes on where it waited: no call. The instruction RESUME
    says so."""
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at] != dis.opmap["RESUME"] or code[at + 1] & 3 != 0
