"""Add up what became of a record's requests, to set two records of the same arrivals side by side.

Requests are compared by the order in which they reached the core: ids and times differ between any
two runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.names import Names
from engine.trace.sequences import request_of
from engine.trace.wording import count

MOST_SHOWN = 5  # requests that changed most


@dataclass
class Fate:
    """Hold what became of one request; steps are 0 while it has not come so far."""

    name: str
    first_token: int = 0
    ended: int = 0
    preemptions: int = 0


@dataclass
class Outcome:
    """Hold the sums of a record, and its requests by arrival."""

    totals: dict[str, int] = field(default_factory=dict)
    fates: list[Fate] = field(default_factory=list)


def outcome(events: Iterable[Event]) -> Outcome:
    """Read a record once."""
    names = Names()
    totals = dict.fromkeys(
        (
            "steps",
            "preemptions",
            "evictions",
            "tokens computed",
            "tokens from the cache or the host",
        ),
        0,
    )
    fates: dict[str, Fate] = {}
    for event in events:
        names.see(event)
        fate = fates.get(request_of(event.request_id))
        if isinstance(event, ev.RequestQueued):
            fates[event.request_id] = Fate(names.name(event.request_id))
        elif isinstance(event, ev.StepPlanned):
            for row in event.rows:
                known = fates.get(request_of(row.request_id))
                if known is not None and row.samples and not known.first_token:
                    known.first_token = event.step
        elif isinstance(event, ev.StepFinished):
            totals["steps"] += 1
            totals["tokens computed"] += event.num_tokens
        elif isinstance(event, ev.RequestAdmitted | ev.RequestResumed):
            totals["tokens from the cache or the host"] += event.num_cached_tokens
        elif isinstance(event, ev.RequestPreempted):
            totals["preemptions"] += 1
            if fate is not None:
                fate.preemptions += 1
        elif isinstance(event, ev.BlockEvicted):
            totals["evictions"] += 1
        elif isinstance(event, ev.RequestFinished | ev.RequestAborted) and fate is not None:
            fate.ended = event.step
    return Outcome(totals, list(fates.values()))


def what_followed(one: Outcome, other: Outcome) -> list[str]:
    """Return the lines: sums that differ, then the requests that changed most."""
    lines = ["what followed (first → second):"]
    for name, value in one.totals.items():
        second = other.totals[name]
        if value != second:
            lines.append(f"  {name}: {value:,} → {second:,} ({second - value:+,})")
    pairs = list(zip(one.fates, other.fates, strict=False))
    if len(one.fates) != len(other.fates):
        lines.append(f"  requests: {len(one.fates):,} → {len(other.fates):,}")
    moved = sorted(pairs, key=_how_far, reverse=True)
    for left, right in moved[:MOST_SHOWN]:
        if _how_far((left, right)):
            lines.append(f"  {left.name}: {_fate(left, right)}")
    same = sum(not _how_far(pair) for pair in pairs)
    if same:
        lines.append(f"  {count(same, 'request')} of {len(pairs)} got every step at the same time")
    return lines if len(lines) > 1 else []


def _how_far(pair: tuple[Fate, Fate]) -> int:
    left, right = pair
    return abs(left.ended - right.ended) + abs(left.first_token - right.first_token)


def _fate(left: Fate, right: Fate) -> str:
    parts = []
    for text, a, b in (
        ("first token in step", left.first_token, right.first_token),
        ("ended in step", left.ended, right.ended),
        ("preempted", left.preemptions, right.preemptions),
    ):
        if a != b:
            times = " ×" if text == "preempted" else ""
            shown = [f"{number:,}{times}" if number or times else "never" for number in (a, b)]
            parts.append(f"{text} {shown[0]} → {shown[1]}")
    return ", ".join(parts)
