"""Collect the life of one request: its waits, its share of each step, its blocks, its end.

    life_of(events, "req-7") → a dict that JSON can carry; None if the record doesn't know the
    request

Times are milliseconds since the request was first seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of
from engine.trace.story import Story


def life_of(events: Iterable[Event], request_id: str) -> dict[str, Any] | None:
    """Read the record once, and return the life of a request.

    Siblings of `n > 1` ("id.1", …) belong to it, each with its own part.
    """
    life = _Life(request_id)
    for event in events:
        for known in _with_standing(event):
            life.see(known)
    return life.to_dict() if life.first_ns else None


def requests_of(events: Iterable[Event]) -> list[str]:
    """Return the requests of the record in the order of their arrival, without siblings."""
    known: dict[str, None] = {}
    for event in (each for one in events for each in _with_standing(one)):
        if isinstance(event, ev.RequestReceived | ev.RequestQueued | ev.RequestRefused):
            known[event.request_id] = None
    return list(known)


def _with_standing(event: Event) -> list[Event]:
    """Yield the event; for a snapshot, first the events with which its living requests began."""
    return [*event.standing, event] if isinstance(event, ev.EngineSnapshot) else [event]


class _Sequence:
    """Collect the states of one sequence, and what the steps did for it."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.computed: list[dict[str, Any]] = []  # prompts, chunks and resumptions
        self.decode: dict[str, Any] = {"steps": 0, "first_step": 0, "last_step": 0}
        self.proposals = {"proposed": 0, "right": 0}
        self.blocks = {"allocated": 0, "shared": 0, "copied": 0, "cached": 0}
        self.table: list[int] = []  # current blocks; at the end, the last table that wasn't empty
        self.drawn: list[dict[str, Any]] = []  # at level full
        self.end: dict[str, Any] = {}


class _Life:
    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.first_ns = 0
        self.facts: dict[str, Any] = {}
        self.sequences: dict[str, _Sequence] = {}
        self.preemptions: list[dict[str, Any]] = []
        self._plans: dict[int, list[ev.StepRow]] = {}
        self._story = Story(with_summaries=False)
        self._lines: list[dict[str, Any]] = []

    def see(self, event: Event) -> None:
        if not self.first_ns and self._is_mine(event.request_id):
            self.first_ns = event.ts_ns
        self._tell(event)
        if isinstance(event, ev.StepPlanned):
            rows = [row for row in event.rows if self._is_mine(row.request_id)]
            if rows:
                self._plans[event.step] = rows
        elif isinstance(event, ev.StepFinished):
            rows = self._plans.pop(event.step, [])
            for row in {row.request_id: row for row in reversed(rows)}.values():
                self._computed(row, event)  # the first of each sequence: proposals have more rows
        elif self._is_mine(event.request_id):
            self._happened(event)

    def to_dict(self) -> dict[str, Any]:
        self._keep(self._story.end())
        return {
            "request_id": self.request_id,
            **self.facts,
            "preemptions": self.preemptions,
            "sequences": {
                name: {
                    "spans": part.spans,
                    "computed": part.computed,
                    "decode": part.decode,
                    "proposals": part.proposals,
                    "blocks": {**part.blocks, "table": part.table},
                    "drawn": part.drawn,
                    **part.end,
                }
                for name, part in self.sequences.items()
            },
            "story": self._lines,
        }

    # ------------------------------------------------------------------------------ details

    def _is_mine(self, sequence: str) -> bool:
        return self.request_id in (sequence, request_of(sequence))

    def _ms(self, event: Event) -> float:
        return round((event.ts_ns - self.first_ns) / 1e6, 3)

    def _of(self, event: Event) -> _Sequence:
        return self.sequences.setdefault(event.request_id, _Sequence())

    def _change(self, event: Event, state: str, **facts: Any) -> None:
        """Enter a state; the one before ends here."""
        spans = self._of(event).spans
        if spans and "end_ms" not in spans[-1]:
            spans[-1]["end_ms"] = self._ms(event)
            spans[-1]["last_step"] = event.step
        if state:
            begin = {"state": state, "start_ms": self._ms(event), "first_step": event.step}
            spans.append({**begin, **facts})

    def _happened(self, event: Event) -> None:
        if isinstance(event, ev.RequestReceived):
            self.facts.update(route=event.route, params=event.params, text=event.text)
        elif isinstance(event, ev.RequestQueued):
            self.facts.update(
                num_prompt_tokens=event.num_prompt_tokens, max_tokens=event.max_tokens, n=event.n
            )
            self._change(event, "waiting", reasons=[])
        elif isinstance(event, ev.RequestWaiting):
            spans = self._of(event).spans
            if spans and "reasons" in spans[-1]:
                spans[-1]["reasons"].append(
                    {
                        "step": event.step,
                        "waits_for": event.waits_for,
                        "need": event.need,
                        "available": event.available,
                        "why": event.why,
                    }
                )
        elif isinstance(event, ev.RequestAdmitted | ev.RequestResumed):
            cached = event.num_cached_tokens
            self._change(event, "running", num_cached_tokens=cached, why=event.why)
        elif isinstance(event, ev.RequestForked):
            self._change(event, "running", parent=event.parent, why=event.why)
        elif isinstance(event, ev.RequestPreempted):
            costs = {"recompute_ms": event.recompute_ms, "swap_ms": event.swap_ms}
            self.preemptions.append(
                {
                    "sequence": event.request_id,
                    "step": event.step,
                    "at_ms": self._ms(event),
                    "mode": event.mode,
                    "for_request": event.for_request,
                    "why": event.why,
                    "mode_why": event.mode_why,
                    **costs,
                }
            )
            self._change(event, "preempted", reasons=[])
        elif isinstance(event, ev.RequestRefused):
            self.facts["refused"] = event.why
        elif isinstance(event, ev.RequestFinished | ev.RequestAborted):
            self._change(event, "")
            reason = event.reason if isinstance(event, ev.RequestFinished) else "abort"
            end = {"finish_reason": reason, "why": event.why, "end_ms": self._ms(event)}
            self._of(event).end = {**end, "num_output_tokens": event.num_output_tokens}
        else:
            self._block_or_token(event)

    def _block_or_token(self, event: Event) -> None:
        if not isinstance(
            event,
            ev.BlockAllocated
            | ev.BlockShared
            | ev.BlockCopied
            | ev.BlockCached
            | ev.SampleDrawn
            | ev.SpecVerified,
        ):
            return
        part = self._of(event)
        if isinstance(event, ev.BlockAllocated):
            part.blocks["allocated"] += len(event.blocks)
            part.table[event.index :] = event.blocks
        elif isinstance(event, ev.BlockShared):
            part.blocks["shared"] += len(event.blocks)
            part.table[event.index :] = event.blocks
        elif isinstance(event, ev.BlockCopied):
            part.blocks["copied"] += 1
            part.table[event.index] = event.dst_block
        elif isinstance(event, ev.BlockCached):
            part.blocks["cached"] += len(event.blocks)
        elif isinstance(event, ev.SpecVerified):
            part.proposals["proposed"] += event.num_proposed
            part.proposals["right"] += event.num_accepted
            if event.blocks:
                del part.table[-len(event.blocks) :]
        else:
            part.drawn.append(
                {
                    "position": event.position,
                    "token_id": event.token_id,
                    "logprob": event.logprob,
                    "rank": event.rank,
                }
            )

    def _computed(self, row: ev.StepRow, event: ev.StepFinished) -> None:
        part = self.sequences.setdefault(row.request_id, _Sequence())
        if row.num_tokens == 1 and row.samples:
            part.decode["steps"] += 1
            part.decode["first_step"] = part.decode["first_step"] or event.step
            part.decode["last_step"] = event.step
            return
        part.computed.append(
            {
                "step": event.step,
                "start": row.start,
                "num_tokens": row.num_tokens,
                "samples": row.samples,
                "at_ms": self._ms(event),
                "step_ms": round(event.total_us / 1e3, 3),
            }
        )

    def _tell(self, event: Event) -> None:
        """Keep the log's lines about this request, and about the steps that ran only it."""
        self._keep(self._story.tell([event]))

    def _keep(self, lines: Iterable[Any]) -> None:
        for line in lines:
            if line.request_id and self._is_mine(line.request_id):
                steps = [line.first_step, line.last_step]
                at_ms = round((line.ts_ns - self.first_ns) / 1e6, 3)
                told = {"at_ms": at_ms, "steps": steps, "kind": line.kind, "text": line.text}
                self._lines.append(told)
