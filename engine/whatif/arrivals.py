"""Read from a record what arrived: when, how long, with which beginning, and how it ended.

Token ids aren't in the record, but the hash of every full block is. So a block's tokens are made of
its hash: two requests share made-up tokens exactly where they shared real ones, at the granularity
of the record's blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of, sequence_name

END = 2**62
"""The token that ends a text; no block's tokens are it."""
DIGITS = 16  # of a recorded hash


@dataclass
class Arrival:
    """Hold one request as it arrived, and what it will draw."""

    request_id: str
    at_ns: int
    num_prompt_tokens: int
    max_tokens: int
    priority: int
    n: int
    outputs: list[int]  # tokens that each of its sequences draws
    tokens: list[list[int]] = field(default_factory=list)  # of each sequence, prompt and output
    stops: bool = True  # its last token ends the text; otherwise max_tokens does


@dataclass
class Workload:
    """Hold what a record says about its load, and what it doesn't say."""

    arrivals: list[Arrival]
    block_size: int
    has_hashes: bool
    has_arrivals: bool  # when requests came to the server, and not only to the core
    notes: list[str]  # what the answer can't know, for this record


def workload(events: Sequence[Event]) -> Workload:
    """Read the arrivals of a record, in order. Raises ValueError if it has none."""
    reader = _Reader(events)
    if not reader.queued:
        raise ValueError("the record has no request that reached the core")
    arrivals = [reader.arrival(request) for request in reader.queued]
    kept = sorted((a for a in arrivals if a is not None), key=lambda a: a.at_ns)
    if not kept:
        raise ValueError("no request of the record has drawn a token")
    return Workload(
        kept, reader.block_size, reader.has_hashes, bool(reader.arrived), reader.notes()
    )


class _Reader:
    def __init__(self, events: Sequence[Event]):
        self.queued: dict[str, ev.RequestQueued] = {}
        self.arrived: dict[str, int] = {}
        self.ends: dict[str, ev.RequestFinished | ev.RequestAborted] = {}
        self.drawn: Counter[str] = Counter()
        self.block_size = 16
        self.has_proposals = False
        self.hidden = 0  # living requests of a snapshot
        plans: dict[int, list[ev.StepRow]] = {}
        for event in events:
            if isinstance(event, ev.RequestTokenized):
                self.arrived[event.request_id] = event.ts_ns
            elif isinstance(event, ev.RequestQueued):
                self.queued[event.request_id] = event
            elif isinstance(event, ev.RequestFinished | ev.RequestAborted):
                self.ends[event.request_id] = event
            elif isinstance(event, ev.EngineKvSized):
                self.block_size = event.block_size
            elif isinstance(event, ev.EngineSnapshot) and event.state is not None:
                self.hidden = len({request_of(name) for name in event.state["status"]})
                self.block_size = event.state["block_size"] or self.block_size
            elif isinstance(event, ev.SpecVerified):
                self.has_proposals = True
                self.drawn[event.request_id] -= event.num_proposed - event.num_accepted
            elif isinstance(event, ev.StepPlanned):
                plans[event.step] = event.rows
            elif isinstance(event, ev.StepFinished):
                for row in plans.pop(event.step, ()):
                    for index in range(row.samples):
                        self.drawn[sequence_name(row.request_id, index)] += 1
        self.left_out = 0
        self.num_made = 0  # sequences whose tokens were made
        self.has_hashes = any(event.hashes for event in self.queued.values())

    def arrival(self, name: str) -> Arrival | None:
        queued = self.queued[name]
        sequences = [sequence_name(name, index) for index in range(queued.n)]
        ends = [self.ends.get(sequence) for sequence in sequences]
        outputs = [
            end.num_output_tokens if end is not None else self.drawn[sequence]
            for end, sequence in zip(ends, sequences, strict=True)
        ]
        if not any(outputs) and queued.max_tokens:
            self.left_out += 1
            return None
        made = Arrival(
            request_id=name,
            at_ns=min(self.arrived.get(name, queued.ts_ns), queued.ts_ns),
            num_prompt_tokens=queued.num_prompt_tokens,
            max_tokens=queued.max_tokens,
            priority=queued.priority,
            n=queued.n,
            outputs=[max(1, number) if queued.max_tokens else 0 for number in outputs],
        )
        made.stops = not all(
            isinstance(end, ev.RequestFinished) and end.reason == "length" for end in ends
        )
        for index, end in enumerate(ends):
            after = end.hashes if isinstance(end, ev.RequestFinished) else ""
            length = queued.num_prompt_tokens + made.outputs[index]
            made.tokens.append(self._tokens(queued.hashes + after, length))
        return made

    def _tokens(self, hashes: str, length: int) -> list[int]:
        """Make tokens of the blocks' hashes; those of no known block are the sequence's own."""
        tokens: list[int] = []
        for start in range(0, len(hashes), DIGITS):
            tokens += [int(hashes[start : start + DIGITS], 16) >> 2] * self.block_size
        self.num_made += 1
        number = -2 - self.num_made  # no hash is negative, and −1 and −2 mean something
        return (tokens + [number] * max(0, length - len(tokens)))[:length]

    def notes(self) -> list[str]:
        ends = self.ends.values()
        aborted = sum(isinstance(end, ev.RequestAborted) for end in ends)
        found = [
            "arrivals are taken as they were: clients that wait for an answer before they ask"
            " again would have come earlier or later",
            "each answer is as long as it was",
        ]
        if not self.has_hashes:
            found.append("the record has no hashes of prompts: no hit in the prefix cache is seen")
        if self.has_proposals:
            found.append("tokens were proposed in the record: here each step draws one a sequence")
        if aborted:
            found.append(f"{aborted} sequences were aborted: here they end with as many tokens")
        if self.left_out:
            found.append(f"{self.left_out} requests that drew no token are left out")
        if self.hidden:
            found.append(f"{self.hidden} requests that ran before the record begins are left out")
        return found
