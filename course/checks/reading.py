"""Check step 1: two questions about a record."""

from __future__ import annotations

from collections import Counter
from types import ModuleType

from course.checks.records import NAMES, record
from course.exercise import Wrong
from engine.trace.events import RequestAdmitted, RequestPreempted


def longest_wait(module: ModuleType) -> None:
    """Name the request that was queued for the longest time before it first ran."""
    for name in NAMES:
        events = record(name)
        waits = {e.request_id: e.waited_us for e in events if isinstance(e, RequestAdmitted)}
        answer, longest = module.longest_wait(list(events)), max(waits, key=waits.__getitem__)
        if answer not in waits:
            raise Wrong(
                f"longest_wait says {answer!r} of {name}.jsonl, which is no admitted request"
            )
        if waits[answer] != waits[longest]:
            raise Wrong(
                f"longest_wait says {answer} of {name}.jsonl, which waited {waits[answer]:,} µs;"
                f" {longest} waited {waits[longest]:,} µs"
            )


def most_preempted(module: ModuleType) -> None:
    """Name the request that was preempted most often, "" if none was."""
    for name in NAMES:
        events = record(name)
        times = Counter(e.request_id for e in events if isinstance(e, RequestPreempted))
        _compare(module.most_preempted(list(events)), times, f"{name}.jsonl")
    preempted = [e for e in record("crowd") if isinstance(e, RequestPreempted)]
    often = [*preempted, preempted[-1]]
    times = Counter(e.request_id for e in often)
    _compare(module.most_preempted(often), times, "crowd.jsonl with its last preemption twice")
    quiet = [e for e in record("crowd") if not isinstance(e, RequestPreempted)]
    _compare(module.most_preempted(quiet), Counter(), "a record without preemptions")


def _compare(answer: object, times: Counter[str], where: str) -> None:
    if not times:
        if answer != "":
            raise Wrong(f'most_preempted says {answer!r} of {where}; it should say ""')
        return
    most, number = times.most_common(1)[0]
    if times[str(answer)] != number:
        raise Wrong(
            f"most_preempted says {answer!r} of {where}, which was preempted"
            f" {times[str(answer)]} times; {most} was {number} times"
        )


PARTS = (longest_wait, most_preempted)
