"""One solution of step 1."""

from __future__ import annotations

from collections import Counter

from engine.trace.events import Event, RequestAdmitted, RequestPreempted


def longest_wait(events: list[Event]) -> str:
    admitted = [event for event in events if isinstance(event, RequestAdmitted)]
    return max(admitted, key=lambda event: event.waited_us).request_id


def most_preempted(events: list[Event]) -> str:
    times = Counter(e.request_id for e in events if isinstance(e, RequestPreempted))
    return times.most_common(1)[0][0] if times else ""
