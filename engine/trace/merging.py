"""Merge the records of this process and of another one into one order by time.

Events of another process arrive later than they happened: its own drain thread adds a delay, and so
does a step that keeps the interpreter busy. While such events arrive, this process's own events
wait as long as the others were late the last time, so that both are ordered by time.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable

from engine.trace.events import Event
from engine.trace.recorder import DRAIN_INTERVAL_S, Recorder

# Own events wait as long as the other process's were late the last time, which counts up to
# MOST_LATE_S, and MARGIN_S longer.
MARGIN_S = 0.1
MOST_LATE_S = 1.0


class MergingRecorder(Recorder):
    """Record like `Recorder`, and merge the events that `forward` gets from another process.

    Up to `capacity` of the forwarded events may wait, too.
    """

    def __init__(
        self, level: str = "steps", src: str = "server", text: bool = True, capacity: int = 200_000
    ) -> None:
        self._forwarded: list[Event] = []  # by time, like this process's own
        self._late_ns: int | None = None  # how late the last ones came; None: none came yet
        self._merged_ns: dict[str, int] = {}  # by source: all its events up to this time are here
        super().__init__(level, src, text, capacity)

    def forward(self, events: Iterable[Event]) -> None:
        """Add events that another process recorded: they keep their own `seq`, time and `src`."""
        if not self.enabled:
            return
        arrived = list(events)
        if not arrived:
            return
        with self._lock:
            late_ns = time.monotonic_ns() - arrived[0].ts_ns
            self._late_ns = min(late_ns, round(MOST_LATE_S * 1e9))
            self._merged_ns[arrived[-1].src] = arrived[-1].ts_ns
            room = max(0, self.capacity - len(self._forwarded))
            self.dropped += len(arrived[room:])
            self._forwarded += arrived[:room]

    def settle(self) -> None:
        """Return when all events so far are handed over, in order.

        This waits only if another process's events arrive, too.
        """
        now = time.monotonic_ns()
        while self._settled_ns() < now:
            time.sleep(DRAIN_INTERVAL_S / 5)
        with self._drain_lock:
            self._drain()

    def _take(self, everything: bool) -> list[Event]:
        if self._late_ns is None:
            return super()._take(everything)
        end = self._number()
        if not everything:  # keep the younger ones: older ones may still arrive
            end = bisect_right(self._buffer, self._settled_ns(), hi=end, key=_time)
        batch = self._cut(end) + self._forwarded
        self._forwarded = []
        batch.sort(key=_time)  # stable: each source stays in its own order
        return batch

    def _settled_ns(self) -> int:
        """Return the time before which no further event will arrive."""
        now = time.monotonic_ns()
        if self._late_ns is None:
            return now
        # A source that has nothing to tell sends nothing: then the margin decides.
        return max(min(self._merged_ns.values()), now - self._late_ns - round(MARGIN_S * 1e9))


def _time(event: Event) -> int:
    return event.ts_ns
