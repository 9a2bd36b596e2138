"""Find the first decision in which two records differ.

Compared is what the engine decided and did: which event, for which request, with which blocks,
tokens, rows. Times, durations, costs and rates differ between any two runs and are ignored. So are
request ids, which a server draws at random: requests are compared by the order in which they
reached the core, and shown by their names in the log. Hashes of blocks are compared by the order in
which they came, since the texts may be others: `whatif` makes some up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from engine.trace import events as ev
from engine.trace.events import Event, kind
from engine.trace.names import Names
from engine.trace.sequences import request_and_index, sequence_name

_NOT_DECISIONS = (
    ev.RequestReceived, ev.EngineStarted, ev.EngineModelLoaded, ev.EngineDivided, ev.EngineKvSized,
    ev.EngineWarning, ev.GraphCaptured, ev.KernelLaunched,
)  # fmt: skip
_MEASURED = ("_us", "_ms", "_s", "_ns")
_IGNORED = {
    "seq",
    "why",
    "mode_why",
    "client",
    "blocks_free",  # of pools of other sizes; what is taken and given back is told by events
    "next_release_steps",
    "num_bytes",
    "queue_length",
    "swap_us",
}
_DIGITS = 16  # of a block's hash, in a request's own
_NUMBERED = re.compile(r"\brequest \d+")
_NAMES = {"request_id", "parent", "for_request", "next_release"}


_Told = tuple[Event, dict[str, Any], dict[str, str]]
"""A decision: its event, comparable fields, names of its requests in the log."""


class Decision(NamedTuple):
    """Hold one record's side of a difference; by default, that the record has ended."""

    words: str = "this record has ended"
    seq: int = -1
    step: int = 0
    request_id: str = ""


class Difference(NamedTuple):
    """Hold the first decision that differs: in words, and as each record has it."""

    text: str
    first: Decision
    second: Decision


def first_difference(one: Iterable[Event], other: Iterable[Event]) -> str:
    """Return two lines about the first decision in which the records differ, or ""."""
    found = where_they_part(one, other)
    return found.text if found is not None else ""


def where_they_part(one: Iterable[Event], other: Iterable[Event]) -> Difference | None:
    """Return the first decision in which the records differ; None if they make the same."""
    for number, (left, right) in enumerate(
        zip_longest(_decisions(one), _decisions(other)), start=1
    ):
        if left is None or right is None:
            longer = "second" if left is None else "first"
            more = _decision(left or right)
            text = (
                f"only the {longer} record goes on, with decision {number},"
                f" {more.words} (seq {more.seq})"
            )
            ended = Decision()
            return Difference(text, more if left else ended, more if right else ended)
        if left[1] != right[1]:
            first, second = _decision(left, right[1]), _decision(right, left[1])
            text = (
                f"decision {number} differs:\n"
                f"  first:  seq {first.seq}: {first.words}\n"
                f"  second: seq {second.seq}: {second.words}"
            )
            return Difference(text, first, second)
    return None


def _decision(told: _Told, other: dict[str, Any] | None = None) -> Decision:
    """Word a decision by all of its fields, or by those in which it differs from the other one."""
    event, fields, names = told
    shown = fields if other is None else _only(fields, other)
    return Decision(_word(shown, names), event.seq, event.step, event.request_id)


def _decisions(events: Iterable[Event]) -> Iterator[_Told]:
    """Yield the core's decisions."""
    numbers: dict[str, str] = {}
    named: dict[str, str] = {}  # request by number → its name
    names = Names()
    hashes: dict[str, int] = {}

    def in_order(value: str | list[str]) -> list[int]:
        if isinstance(value, str):  # of a request: the beginnings of its blocks' hashes
            value = [value[i : i + _DIGITS] for i in range(0, len(value), _DIGITS)]
        return [hashes.setdefault(part[:_DIGITS], len(hashes) + 1) for part in value]

    def number(request_id: str) -> str:
        request, index = request_and_index(request_id)
        if request not in numbers:
            numbers[request] = f"request {len(numbers) + 1}"
            named[numbers[request]] = names.name(request)
        return sequence_name(numbers[request], index)

    for event in events:
        names.see(event)
        if event.src != "core" or isinstance(event, _NOT_DECISIONS):
            continue
        fields: dict[str, Any] = {"kind": kind(event), "step": event.step}
        if event.request_id:
            fields["request_id"] = number(event.request_id)
        for name, value in msgspec.structs.asdict(event).items():
            if name in _IGNORED or name in fields or name.endswith(_MEASURED) or name == "src":
                continue
            if name in _NAMES:
                value = number(value) if value else ""
            elif name == "hashes":
                value = in_order(value)
            elif name == "hash":
                value = in_order([value])
            elif name == "rows":
                value = [(number(r.request_id), r.start, r.num_tokens, r.samples) for r in value]
            elif name == "candidates":
                value = [c.token_id for c in value]
            elif isinstance(value, float):
                value = round(value, 3)
            fields[name] = value
        yield event, fields, named


def _only(fields: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Keep kind, step and request, and of the other fields those that differ."""
    if fields["kind"] != other["kind"]:
        return fields
    always = ("kind", "step", "request_id")
    return {k: v for k, v in fields.items() if k in always or v != other.get(k)}


def _word(fields: dict[str, Any], names: dict[str, str]) -> str:
    shown = {
        k: v for k, v in fields.items() if k not in ("kind", "step") and v not in ("", [], 0, {})
    }
    rest = ", ".join(f"{key} {value}" for key, value in shown.items())
    rest = _NUMBERED.sub(lambda match: names[match[0]], rest)
    return f"{fields['kind']} in step {fields['step']}{': ' if rest else ''}{rest}"
