"""Record events at low cost to the code that records them.

    loop, worker ──record()──▶ bounded list ──every 50 ms──▶ drain thread ──batches──▶ subscribers

`record()` reads the clock and appends, in half a microsecond, without a lock: in CPython
`list.append` is atomic. The drain thread numbers, encodes, prints and sends. The buffer is bounded:
when subscribers fall so far behind that it is full, new events are counted and dropped, and an
`engine.warning` in the record says how many and where.

With two processes, one has a `PackingRecorder` (packing.py), the other a `MergingRecorder`
(merging.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from engine.trace.events import (
    FULL_ONLY,
    EngineWarning,
    Event,
    RequestFinished,
    RequestReceived,
    RequestTokenized,
    SampleDrawn,
    StopMatched,
    TextEmitted,
    TextTokens,
    ToolCalled,
)
from engine.trace.sequences import request_of
from engine.trace.together import TOGETHER, how_many, one_by_one

LEVELS = ("off", "steps", "full", "profile")
DRAIN_INTERVAL_S = 0.05

Subscriber = Callable[[list[Event]], None]
Reader = Callable[[list[int]], dict[int, str]]

_FULL_ONLY = frozenset(FULL_ONLY)


class Recorder:
    """Collect the events of one process, and send them to subscribers in batches, ordered by `seq`.

    `level` is "off" (nothing is recorded), "steps" (everything but the `FULL_ONLY` kinds), "full"
    or "profile" (full, with each kernel's time). Requests named in `full_requests` are recorded at
    "full" whatever the level, unless it is "off". `text=False` keeps people's text, and the token
    ids that spell it, out of the record. `capacity` is the number of events that may wait for the
    drain thread. `clock` gives the time of events, and of all that is measured for them, in
    nanoseconds. `thread=False`: there is no drain thread, and `flush` sends.

    Raises ValueError for an unknown level or a capacity below 1.
    """

    def __init__(
        self,
        level: str = "steps",
        src: str = "core",
        text: bool = True,
        capacity: int = 200_000,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        thread: bool = True,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"trace level {level!r} is unknown: choose one of {', '.join(LEVELS)}")
        if capacity < 1:
            raise ValueError(f"the record's capacity is {capacity} events: it must be at least 1")
        self.level = level
        self.enabled = level != "off"
        self.full = level in ("full", "profile")
        self.profile = level == "profile"  # the launcher of a kernel times it
        self.src = src
        self.text = text
        self.capacity = capacity
        self.clock = clock
        self.full_requests: set[str] = set()
        self.step = 0  # set by the engine loop when a step starts
        self.full_step = False  # record this step's kernels: it runs one of `full_requests`
        self.dropped = 0  # events lost because the buffer was full
        self.events_lost = 0  # events that a subscriber couldn't take, counted for each

        self._lock = threading.Lock()  # guards everything below, but not appending to the buffer
        self._buffer: list[Event] = []
        self._numbered = 0  # events at the front of the buffer that have their `seq`
        self._last_seq = 0
        self._skipped = 0  # numbers of lost events, which `seq` leaves out
        self._last_ns = 0  # time of the last numbered event
        self._told = 0  # losses already stated in a warning
        self._subscribers: tuple[Subscriber, ...] = ()
        self._drain_lock = threading.Lock()  # one batch at a time reaches the subscribers
        self._reader: Reader | None = None
        self._read: set[int] = set()  # token ids whose texts are in the record
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if self.enabled and thread:
            self._thread = threading.Thread(target=self._drain_loop, name="trace", daemon=True)
            self._thread.start()

    # ------------------------------------------------------------------------------ recording

    def record(self, event: Event) -> None:
        """Keep the event, with the current time. The event must not be changed afterwards.

        May be called from any thread.
        """
        if not self.enabled:
            return
        if not self.full and type(event) in _FULL_ONLY and not self.wants_full(event.request_id):
            return
        if event.step == 0:
            event.step = self.step
        if len(self._buffer) >= self.capacity:
            with self._lock:
                if len(self._buffer) >= self.capacity:  # still
                    self.dropped += how_many(event)
                    self._skipped += how_many(event)
                    return
        event.ts_ns = self.clock()
        self._buffer.append(event)

    def number(self, event: Event) -> int:
        """Return the `seq` of an event that was just recorded; 0 if it wasn't kept.

        Other events use it to refer to this one.
        """
        with self._lock:
            self._number()
        return event.seq

    def pack(self) -> None:
        """Pack events between two steps. This recorder leaves that to the drain thread."""

    def wants_full(self, request_id: str) -> bool:
        """Return whether `FULL_ONLY` events of this request are recorded.

        A sequence counts as its request ("x.2" is one of "x"). Callers ask before they build an
        expensive event. An event of no single request (`request_id` "", a kernel) is wanted in the
        steps that run such a request: the loop sets `full_step` beside `step`.
        """
        if self.full:
            return True
        if not self.enabled or not self.full_requests:
            return False
        if not request_id:
            return self.full_step
        return request_id in self.full_requests or request_of(request_id) in self.full_requests

    # ------------------------------------------------------------------------------ subscribers

    def subscribe(self, callback: Subscriber) -> None:
        """Send every later batch to `callback`, on the drain thread. It must not block for long.

        It takes a batch whole or, raising, not at all: then it gets the events one by one.
        """
        with self._drain_lock:
            self._subscribers = (*self._subscribers, callback)

    def unsubscribe(self, callback: Subscriber) -> None:
        """Stop sending batches to `callback`. Does nothing if it isn't subscribed."""
        with self._drain_lock:
            self._remove(callback)

    def read_tokens(self, reader: Reader) -> None:
        """Record the texts of token ids from now on. `reader` gives them, on the drain thread.

        Does nothing if people's text is kept out of the record.
        """
        if self.text:
            self._reader = reader

    def flush(self) -> None:
        """Send all waiting events now, on the caller's thread."""
        with self._drain_lock:
            self._drain(everything=True)

    def close(self) -> None:
        """Stop the drain thread and send what is left. Nothing is recorded afterwards."""
        self.enabled = False
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self.flush()

    # ------------------------------------------------------------------------------ details

    def _drain_loop(self) -> None:
        while not self._closed.wait(DRAIN_INTERVAL_S):
            with self._drain_lock:
                self._drain()

    def _take(self, everything: bool) -> list[Event]:
        """Number the events to be sent now and remove them from the buffer. `_lock` must be
        held."""
        return self._cut(self._number())

    def _cut(self, end: int) -> list[Event]:
        """Remove and return the first `end` events of the buffer, which have their numbers."""
        batch = self._buffer[:end]
        del self._buffer[:end]
        self._numbered -= end
        return batch

    def _drain(self, everything: bool = False) -> None:
        with self._lock:
            batch = self._take(everything)
        if not batch:
            return
        if self._subscribers:
            batch = one_by_one(batch)
        if self._reader is not None:
            self._add_texts(batch, self._reader)
        for subscriber in self._subscribers:
            self._hand(subscriber, batch)

    def _hand(self, subscriber: Subscriber, batch: list[Event]) -> None:
        """Send a batch to one subscriber; where it fails, one by one, so that one bad event costs
        one event."""
        try:
            subscriber(batch)
        except Exception as error:
            if len(batch) == 1:
                self._lose(subscriber, error)
                return
            for event in batch:
                self._hand(subscriber, [event])

    def _lose(self, reader: Callable[..., None], error: Exception) -> None:
        """Count an event that a reader couldn't take. The record says so at 1, 2, 4, 8, …"""
        self.events_lost += 1
        if self.events_lost & (self.events_lost - 1) == 0 and self.enabled:
            name = getattr(reader, "__qualname__", type(reader).__name__)
            problem = f"{type(error).__name__}: {error}"
            lost = f"{self.events_lost} lost so far"
            warning = self._warning(f"{name} could not take an event ({lost}): {problem}")
            warning.events_lost = self.events_lost
            self._buffer.append(warning)

    def _number(self) -> int:
        """Give the recorded events their `seq`, in the buffer's order, and report lost events.

        `_lock` must be held. Returns how many events of the buffer have a number. A thread may be
        interrupted between reading the clock and appending, while another thread records: then its
        event gets the other one's time.
        """
        self._stamp()
        lost = self.dropped - self._told
        if lost:  # the buffer was full: everything in it came before the lost events
            self._told += lost
            self._last_seq += self._skipped
            self._skipped = 0
            self._buffer.append(self._warning(_loss_message(lost, self.capacity)))
            self._stamp()
        return self._numbered

    def _stamp(self) -> None:
        new = self._buffer[self._numbered :]
        self._numbered += len(new)
        seq, latest, src = self._last_seq, self._last_ns, self.src
        for event in new:
            seq += 1
            event.seq = seq
            if event.ts_ns < latest:
                event.ts_ns = latest
            else:
                latest = event.ts_ns
            if event.src != src:
                event.src = src
            if type(event) in TOGETHER:
                seq += how_many(event) - 1
        self._last_seq, self._last_ns = seq, latest
        if not self.text:
            for event in new:
                _drop_text(event)

    def _add_texts(self, batch: list[Event], reader: Reader) -> None:
        """Put the texts of tokens that weren't named before in front of the events that name
        them."""
        named: set[int] = set()
        for event in batch:
            if isinstance(event, SampleDrawn):
                named.add(event.token_id)
                if event.instead_of >= 0:
                    named.add(event.instead_of)
                named.update(candidate.token_id for candidate in event.candidates)
            elif isinstance(event, RequestTokenized):
                named.update(event.token_ids)
        new = sorted(named - self._read)
        if not new:
            return
        try:
            batch.insert(0, TextTokens(texts=reader(new), ts_ns=batch[0].ts_ns))
        except Exception as error:  # the record continues, with ids only
            self._reader = None
            problem = f"{type(error).__name__}: {error}"
            self._buffer.append(self._warning(f"tokens are no longer read: {problem}"))
        self._read.update(new)

    def _warning(self, message: str) -> EngineWarning:
        return EngineWarning(message=message, ts_ns=self.clock(), step=self.step)

    def _remove(self, callback: Subscriber) -> None:
        # == and not `is`: each access to a bound method makes a new object
        self._subscribers = tuple(s for s in self._subscribers if s != callback)


def _loss_message(lost: int, capacity: int) -> str:
    return (
        f"{lost} events were lost just before this one: {capacity} already waited to be written. "
        "Replay isn't exact from here on"
    )


def _drop_text(event: Event) -> None:
    """Blank what spells people's text: the text itself, stop strings, token ids (-1 = withheld)."""
    if isinstance(event, RequestReceived):
        event.text = ""
        event.params = {k: v for k, v in event.params.items() if isinstance(v, (int, float, bool))}
    elif isinstance(event, RequestTokenized):
        event.token_ids = []
    elif isinstance(event, SampleDrawn):
        event.token_id = event.instead_of = -1
        event.candidates = []
    elif isinstance(event, TextEmitted):
        event.text = ""
    elif isinstance(event, StopMatched):
        event.stop = ""
    elif isinstance(event, ToolCalled):
        event.tool = ""
    elif isinstance(event, RequestFinished) and event.stop_reason:
        event.stop_reason = ""
        event.why = "a stop string or stop token of its own (withheld)"
