"""RecordWindow: the latest events of the record, and what everything before them folds into.

    ── evicted: folded into `before` ──┤├── lines[0] (number `first`) … lines[-1], JSON ──▶ now

Events have positions: 1, 2, 3, … over both processes, in the order in which they arrived. Memory is
bounded by the number of events and by their bytes; what leaves the window is folded, so the exact
state at any position inside of it can be told for as long as the server runs.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.events import AnyEvent, Event, kind
from engine.trace.files import to_json

WINDOW_BYTES = 256 * 2**20
"""A step of 256 rows takes 10 kB."""

STANDING_REQUESTS = 4096  # more than can be alive: received ones that never reached the core leak

_decode = msgspec.json.Decoder(AnyEvent).decode

_FACTS = (ev.EngineStarted, ev.EngineModelLoaded, ev.EngineKvSized)
_BEGINNINGS = (
    ev.RequestReceived, ev.RequestTokenized, ev.RequestQueued, ev.RequestAdmitted, ev.RequestForked
)  # fmt: skip
_ENDINGS = (ev.RequestFinished, ev.RequestAborted, ev.RequestRefused)


class Fold:
    """What events fold into: the engine's state and the log's names (`Context`), and the events
    that still matter: the engine's facts, and how the requests that are alive began."""

    def __init__(self) -> None:
        self.context = Context()
        self._facts: dict[str, Event] = {}  # by kind
        self._begun: OrderedDict[str, list[Event]] = OrderedDict()  # by sequence

    def see(self, event: Event) -> None:
        self.context.see(event)
        self.keep(event)

    def keep(self, event: Event) -> None:
        """Only note what still matters; somebody else has shown the event to the context."""
        if isinstance(event, _FACTS):
            self._facts[kind(event)] = event
        elif isinstance(event, _BEGINNINGS):
            self._begun.setdefault(event.request_id, []).append(event)
            if len(self._begun) > STANDING_REQUESTS:
                self._begun.popitem(last=False)
        elif isinstance(event, _ENDINGS):
            self._begun.pop(event.request_id, None)

    def copy(self) -> Fold:
        """An independent copy. O(blocks + requests)."""
        other = Fold()
        # The state knows how to copy itself quickly; the rest of the context is small.
        state, self.context.state = self.context.state, None
        try:
            other.context = copy.deepcopy(self.context)
        finally:
            self.context.state = state
        other.context.state = state.copy() if state is not None else None
        other._facts = self._facts.copy()
        other._begun = OrderedDict((name, begun.copy()) for name, begun in self._begun.items())
        return other

    def snapshot(self) -> dict[str, Any]:
        """What someone who joins here must know: `state` as `EngineState.to_dict`, None once the
        record has a gap, and `standing`, the events from before that still matter."""
        state = self.context.state
        standing = [*self._facts.values(), *(e for begun in self._begun.values() for e in begun)]
        if state is None:
            return {"state": None, "standing": standing}
        return {
            "state": state.to_dict(),
            "ranks": {name: sequence.rank for name, sequence in state.sequences.items()},
            "planned": [{"step": step, "rows": rows} for step, rows in state.planned.items()],
            "last_seq": state.last_seq,
            "standing": standing,
        }


class RecordWindow:
    """A subscriber that keeps at most `capacity` events and `capacity_bytes` bytes of JSON."""

    def __init__(self, capacity: int, capacity_bytes: int = WINDOW_BYTES):
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._first = 1
        self._before = Fold()
        self._lock = threading.Lock()
        self._watchers: tuple[Callable[[], None], ...] = ()

    def __call__(self, events: list[Event]) -> None:
        lines = [to_json(event) for event in events]
        with self._lock:
            self._lines.extend(lines)
            self._bytes += sum(map(len, lines))
            while len(self._lines) > self._capacity or self._bytes > self._capacity_bytes:
                line = self._lines.popleft()
                self._bytes -= len(line)
                self._first += 1
                self._before.see(_decode(line))
        for wake in self._watchers:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                wake()

    def watch(self, wake: Callable[[], None]) -> None:
        """`wake()` is called on the drain thread whenever there is something new: it must return at
        once."""
        with self._lock:
            self._watchers = (*self._watchers, wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other is not wake)

    @property
    def span(self) -> tuple[int, int]:
        """(position of the oldest event that is here, position of the latest one)."""
        with self._lock:
            return self._first, self._first + len(self._lines) - 1

    def lines(self) -> list[bytes]:
        """The events, oldest first, each a line of JSON without its newline."""
        with self._lock:
            return list(self._lines)

    def after(self, position: int, most: int) -> list[bytes] | None:
        """The next events after `position`, at most so many; None if some of them are gone."""
        with self._lock:
            skip = position + 1 - self._first
            if skip < 0:
                return None
            behind = len(self._lines) - skip
            if behind <= len(self._lines) // 2:  # a deque is indexed from its nearer end
                end = max(0, behind - most)
                lines = list(islice(reversed(self._lines), end, behind))
                lines.reverse()
                return lines
            return list(islice(self._lines, skip, skip + most))

    def beginning(self) -> tuple[Fold, int]:
        """What the events before the window fold into (a copy), and the position of the last of
        them."""
        with self._lock:
            return self._before.copy(), self._first - 1

    def events(self) -> list[Event]:
        """The events in the window, decoded. A second for 200,000."""
        return [_decode(line) for line in self.lines()]

    def state_at(self, step: int | None) -> dict[str, Any]:
        """The snapshot right after the last event of `step`, or now. Raises KeyError if the window
        doesn't have that step."""
        with self._lock:
            fold, position, lines = self._before.copy(), self._first - 1, list(self._lines)
        events = [_decode(line) for line in lines]
        count = len(events)
        if step is not None:
            of_core = [e.step if e.src == "core" else 0 for e in events]
            if step not in of_core or step < 1:
                steps = [number for number in of_core if number]
                known = f"steps {min(steps)} to {max(steps)}" if steps else "no steps"
                raise KeyError(f"step {step} is not in this record any more; it has {known}")
            count -= of_core[::-1].index(step)
        for event in events[:count]:
            fold.see(event)
        return {"position": position + count, **fold.snapshot()}
