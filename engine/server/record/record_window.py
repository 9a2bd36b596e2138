"""Keep the latest events of the record, and the fold of everything before them.

    ── evicted: folded into `before` ──┤├── lines[0] (number `first`) … lines[-1], JSON ──▶ now

Events have positions: 1, 2, 3, … over both processes, in the order in which they arrived. The
number of events and their bytes bound the memory. Events that leave the window are folded, so the
exact state at any position inside it is available for as long as the server runs.
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
from engine.trace.sequences import request_of

WINDOW_BYTES = 256 * 2**20
"""A step of 256 rows takes 10 kB."""

# More than can be alive: received requests that never reach the core would leak.
STANDING_REQUESTS = 4096

_decode = msgspec.json.Decoder(AnyEvent).decode

_FACTS = (ev.EngineStarted, ev.EngineModelLoaded, ev.EngineDivided, ev.EngineKvSized)
_BEGINNINGS = (
    ev.RequestReceived, ev.RequestTokenized, ev.GrammarCompiled, ev.RequestQueued,
    ev.RequestAdmitted, ev.RequestForked
)  # fmt: skip
_TURNS = (ev.RequestPreempted, ev.RequestResumed)
_ENDINGS = (ev.RequestFinished, ev.RequestAborted, ev.RequestRefused)


class Fold:
    """Fold events into the engine's state and the log's names (`Context`).

    It also keeps the events that still matter: the engine's facts, and how the living requests
    began.
    """

    def __init__(self) -> None:
        self.num_events = 0
        self.last_ns = 0
        self.context = Context()
        self._facts: dict[str, Event] = {}  # by kind
        self._begun: OrderedDict[str, list[Event]] = OrderedDict()  # by sequence

    def see(self, event: Event) -> None:
        self.context.see(event)
        if isinstance(event, ev.StepFinished):
            self.context.finish_step(event.step)
        self.keep(event)

    def keep(self, event: Event) -> None:
        """Keep the event if it still matters; other code has shown it to the context."""
        self.num_events += 1
        self.last_ns = event.ts_ns
        if isinstance(event, _FACTS):
            self._facts[kind(event)] = event
        elif isinstance(event, ev.EngineWarning):
            if event.events_lost:  # the count so far
                self._facts[kind(event)] = event
        elif isinstance(event, _BEGINNINGS):
            self._begun.setdefault(event.request_id, []).append(event)
            if len(self._begun) > STANDING_REQUESTS:
                self._begun.popitem(last=False)
        elif isinstance(event, _TURNS) and event.request_id in self._begun:
            # Only the latest one: it has the request's current state.
            begun = self._begun[event.request_id]
            begun[:] = [known for known in begun if not isinstance(known, _TURNS)] + [event]
        elif isinstance(event, _ENDINGS):
            self._begun.pop(event.request_id, None)

    def copy(self) -> Fold:
        """Return an independent copy. O(blocks + requests)."""
        other = Fold()
        other.num_events, other.last_ns = self.num_events, self.last_ns
        # State and texts are large and can be copied quickly; the rest of the context is small.
        context = self.context
        state, texts = context.state, context.texts
        context.state, context.texts = None, {}
        try:
            other.context = copy.deepcopy(context)
        finally:
            context.state, context.texts = state, texts
        other.context.state = state.copy() if state is not None else None
        other.context.texts = texts.copy()
        other._facts = self._facts.copy()
        other._begun = OrderedDict((name, begun.copy()) for name, begun in self._begun.items())
        return other

    def snapshot(self, texts: bool = False) -> ev.EngineSnapshot:
        """Make a snapshot for a reader that starts here. `texts`: include the texts of tokens."""
        state = self.context.state
        found = state.snapshot() if state is not None else ev.EngineSnapshot()
        found.ts_ns, found.num_gone = self.last_ns, self.num_events
        standing = [*self._facts.values(), *(e for begun in self._begun.values() for e in begun)]
        found.standing = sorted(standing, key=lambda event: event.ts_ns)
        alive = {request_of(name) for name in self._begun} | self._begun.keys()
        names = self.context.names
        found.names = {name: names[name] for name in names if name in alive}
        found.num_named = self.context.num_named
        found.texts = self.context.texts if texts else {}
        return found


class RecordWindow:
    """Subscribe to the record and keep at most `capacity` events, `capacity_bytes` bytes of
    JSON."""

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
        """Call `wake()` on the drain thread whenever there are new events. It must return
        immediately."""
        with self._lock:
            self._watchers = (*self._watchers, wake)

    def unwatch(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other is not wake)

    @property
    def span(self) -> tuple[int, int]:
        """Return the positions of the oldest and of the latest event in the window."""
        with self._lock:
            return self._first, self._first + len(self._lines) - 1

    def lines(self) -> list[bytes]:
        """Return the events, oldest first, each a line of JSON without its newline."""
        with self._lock:
            return list(self._lines)

    def record(self) -> tuple[ev.EngineSnapshot | None, list[bytes]]:
        """Return a complete record: the fold of earlier events, and the lines of the window.

        The fold is None if there were no earlier events.
        """
        with self._lock:
            if self._first == 1:
                return None, list(self._lines)
            before, lines = self._before.copy(), list(self._lines)
        return before.snapshot(texts=True), lines

    def after(self, position: int, most: int) -> list[bytes] | None:
        """Return the events after `position`, at most `most`; None if some of them are gone."""
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
        """Return a copy of the fold before the window, and the position of its last event."""
        with self._lock:
            return self._before.copy(), self._first - 1

    def events(self) -> list[Event]:
        """Return the same record, decoded. Takes a second for 200,000 events."""
        before, lines = self.record()
        return [*([before] if before is not None else []), *map(_decode, lines)]

    def state_at(self, step: int | None) -> dict[str, Any]:
        """Return the snapshot right after the last event of `step`, or now.

        Raises KeyError if the window doesn't have that step.
        """
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
        return {"position": position + count, **msgspec.structs.asdict(fold.snapshot())}
