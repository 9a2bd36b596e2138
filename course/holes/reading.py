"""Step 1. Read a record.

Everything that the engine decides is an event with its reason. Answer two questions about any
record, such as docs/records/crowd.jsonl. Begin with engine/trace/events.py: `RequestAdmitted`,
`RequestPreempted`.
"""

from __future__ import annotations

from engine.trace.events import Event


def longest_wait(events: list[Event]) -> str:
    """Return the id of the request that was queued for the longest time before it first ran."""
    raise NotImplementedError


def most_preempted(events: list[Event]) -> str:
    """Return the id of the request that was preempted most often, "" if none was."""
    raise NotImplementedError
