"""Merge the records of this process and of others into one order by time.

Events of another process arrive later than they happened: its own drain thread adds a delay, and so
does a step that keeps the interpreter busy. While such events arrive, this process's own events
wait as long as the others were late the last time, so that all are ordered by time.
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
        self._late_ns: dict[str, int] = {}  # by source: how late its last ones came
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
            late_ns, source = time.monotonic_ns() - arrived[0].ts_ns, arrived[-1].src
            self._late_ns[source] = min(late_ns, round(MOST_LATE_S * 1e9))
            self._merged_ns[source] = arrived[-1].ts_ns
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
        if not self._late_ns:
            return super()._take(everything)
        end, forwarded = self._number(), self._forwarded
        self._forwarded = []
        if not everything:  # keep the younger ones: older ones may still arrive
            settled_ns = self._settled_ns()
            end = bisect_right(self._buffer, settled_ns, hi=end, key=_time)
            if len(self._merged_ns) > 1:  # of one source, all up to its last one are here
                forwarded.sort(key=_time)
                here = bisect_right(forwarded, settled_ns, key=_time)
                self._forwarded = forwarded[here:]
                del forwarded[here:]
        batch = self._cut(end) + forwarded
        batch.sort(key=_time)  # stable: each source stays in its own order
        return batch

    def _settled_ns(self) -> int:
        """Return the time before which no further event will arrive."""
        now = time.monotonic_ns()
        if not self._late_ns:
            return now
        # A source that has nothing to tell sends nothing: then the margin decides.
        late_ns = max(self._late_ns.values())
        return max(min(self._merged_ns.values()), now - late_ns - round(MARGIN_S * 1e9))


def _time(event: Event) -> int:
    return event.ts_ns
