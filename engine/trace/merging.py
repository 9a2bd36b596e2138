"""MergingRecorder: one order by time for what this process and another one record.

Events of another process come later than they happened: by a drain of its own, and by a step that
keeps the interpreter to itself. Where there are such, own events wait for them, as long as they
came late the last time, so that both fall into one order by time.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable

from engine.trace.events import Event
from engine.trace.recorder import DRAIN_INTERVAL_S, Recorder

MARGIN_S = 0.1  # own events wait so much longer than the other process's came late the last time,
MOST_LATE_S = 1.0  # which counts up to here


class MergingRecorder(Recorder):
    """As `Recorder`, and the other process's events `forward` to it. Up to `capacity` of theirs may
    wait, too."""

    def __init__(
        self, level: str = "steps", src: str = "server", text: bool = True, capacity: int = 200_000
    ) -> None:
        self._forwarded: list[Event] = []  # in order by time, as the own ones are
        self._late_ns: int | None = None  # how late they came the last time; None: there are none
        self._merged_ns = 0  # up to this time, all of them are here
        super().__init__(level, src, text, capacity)

    def forward(self, events: Iterable[Event]) -> None:
        """Pass on events that another process recorded: they keep their own `seq`, time and
        `src`."""
        if not self.enabled:
            return
        arrived = list(events)
        if not arrived:
            return
        with self._lock:
            late_ns = time.monotonic_ns() - arrived[0].ts_ns
            self._late_ns = min(late_ns, round(MOST_LATE_S * 1e9))
            self._merged_ns = max(self._merged_ns, arrived[-1].ts_ns)
            room = max(0, self.capacity - len(self._forwarded))
            self.dropped += len(arrived[room:])
            self._forwarded += arrived[:room]

    def settle(self) -> None:
        """Return when all that has happened by now is handed over, in order: at once, but where
        events of another process come, too."""
        now = time.monotonic_ns()
        while self._settled_ns() < now:
            time.sleep(DRAIN_INTERVAL_S / 5)
        with self._drain_lock:
            self._drain()

    def _take(self, everything: bool) -> list[Event]:
        if self._late_ns is None:
            return super()._take(everything)
        end = self._number()
        if not everything:  # what is younger waits: something older may still come
            end = bisect_right(self._buffer, self._settled_ns(), hi=end, key=_time)
        batch = self._cut(end) + self._forwarded
        self._forwarded = []
        batch.sort(key=_time)  # stable: each source stays in its own order
        return batch

    def _settled_ns(self) -> int:
        """The time up to which no event will come any more."""
        now = time.monotonic_ns()
        if self._late_ns is None:
            return now
        return max(self._merged_ns, now - self._late_ns - round(MARGIN_S * 1e9))


def _time(event: Event) -> int:
    return event.ts_ns
