"""Read the records that the checks ask about."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from engine.trace.events import Event
from engine.trace.files import read_all

RECORDS = Path(__file__).resolve().parents[2] / "docs" / "records"
NAMES = ("crowd", "tour")


@cache
def record(name: str) -> tuple[Event, ...]:
    """Return the events of docs/records/NAME.jsonl."""
    return tuple(read_all(RECORDS / f"{name}.jsonl"))
