"""Measure a record: how much happened, and how long requests waited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of, sequence_name

COUNTS = (
    "steps",
    "preemptions",
    "tokens computed",
    "tokens from the cache",
    "requests that waited",
)
TIMES = ("first token", "gap between tokens", "whole answer")


@dataclass
class Measures:
    """Hold the counts of a record, and its times in ms, each sorted."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    refused: int = 0
    times: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in TIMES})
    seconds: float = 0.0

    def percentile(self, name: str, percent: int) -> float:
        """Return a percentile of a kind of time, in ms; 0 if there is none."""
        values = self.times[name]
        return values[min(len(values) - 1, len(values) * percent // 100)] if values else 0.0

    def rows(self) -> dict[str, float]:
        """Return everything by name: counts first, then milliseconds."""
        found: dict[str, float] = dict(self.counts)
        for name in TIMES:
            for percent in (50, 99):
                found[f"{name}, p{percent}, ms"] = self.percentile(name, percent)
        found["from first arrival to last end, s"] = self.seconds
        return found


def measure(events: Sequence[Event], arrived: Mapping[str, int] | None = None) -> Measures:
    """Measure the requests in `arrived`, which says when each came (nanoseconds).

    Without it, a request comes when the core takes it, between two steps.
    """
    if arrived is None:
        arrived = {e.request_id: e.ts_ns for e in events if isinstance(e, ev.RequestQueued)}
    found = Measures()
    counts, times = found.counts, found.times
    plans: dict[int, list[ev.StepRow]] = {}
    last_token: dict[str, int] = {}
    waited: set[str] = set()
    planned: dict[str, int] = {}  # request → steps planned when it was queued
    num_planned, last_ns = 0, 0
    for event in events:
        if isinstance(event, ev.StepPlanned):
            plans[event.step] = event.rows
            num_planned += 1
        elif isinstance(event, ev.StepFinished):
            counts["steps"] += 1
            counts["tokens computed"] += event.num_tokens
            for row in plans.pop(event.step, ()):
                for index in range(row.samples):
                    name = sequence_name(row.request_id, index) if index else row.request_id
                    _token(name, event.ts_ns, last_token, arrived, times)
        elif isinstance(event, ev.RequestQueued):
            planned[event.request_id] = num_planned
        elif isinstance(event, ev.RequestAdmitted):
            counts["tokens from the cache"] += event.num_cached_tokens
            if num_planned > planned.get(event.request_id, num_planned) + 1:
                waited.add(event.request_id)
        elif isinstance(event, ev.RequestPreempted):
            counts["preemptions"] += 1
        elif isinstance(event, ev.RequestRefused):
            found.refused += 1
        elif isinstance(event, ev.RequestFinished | ev.RequestAborted):
            came = arrived.get(request_of(event.request_id))
            if came is not None:
                times["whole answer"].append((event.ts_ns - came) / 1e6)
                last_ns = event.ts_ns
    counts["requests that waited"] = len(waited)
    for values in times.values():
        values.sort()
    found.seconds = (last_ns - min(arrived.values())) / 1e9 if last_ns and arrived else 0.0
    return found


def _token(
    name: str,
    now_ns: int,
    last: dict[str, int],
    arrived: Mapping[str, int],
    times: dict[str, list[float]],
) -> None:
    came = arrived.get(request_of(name))
    if came is None:
        return
    if name in last:
        times["gap between tokens"].append((now_ns - last[name]) / 1e6)
    else:
        times["first token"].append((now_ns - came) / 1e6)
    last[name] = now_ns
