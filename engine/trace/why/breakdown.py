"""Break a request's time down by cause: who or what it waited for in each nanosecond.

    received ─ tokenized ─ queued ─ admitted ─ steps … ─ finished ─ text known ─ last byte sent

Each moment between two of these has one cause. A step's time is divided further: what the step
would have taken for the request itself, what others' prompts in it added, copying, drawing, the
loop. The parts are integers and sum to the whole exactly.

`why_slow` returns:
    whole_ns, first_token_ns (from its arrival to its first drawn token; None if there is none)
    ended: whether the request has ended; otherwise the whole reaches to the record's end
    parts: [{cause, who: [requests], for, ns, before_first_token_ns, steps, why}], in order of time
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.why.shares import divide, fit_in
from engine.trace.why.story_of_one import EndedStep, StoryOfOne, read

MOST_NAMED = 8  # requests in `who` of one part


class Cause(NamedTuple):
    """Name what a stretch of time went to. Stretches of the same cause become one part."""

    cause: str
    who: str = ""  # the request that caused it, if it was another one
    what_for: str = ""


OWN_DECODE, OWN_PREFILL, AGAIN = Cause("decode"), Cause("prefill"), Cause("recompute")
SAMPLING, RECORDING, LOOP = Cause("sampling"), Cause("recording"), Cause("loop")


@dataclass
class _Part:
    ns: int = 0
    before_first: int = 0
    steps: int = 0
    others: dict[str, None] = field(default_factory=dict)  # who held what was waited for
    why: str = ""


def why_slow(events: Iterable[Event], request_id: str) -> dict[str, Any] | None:
    """Return the breakdown of a request's time; None if the record doesn't know the request."""
    story = read(events, request_id)
    return _Breakdown(story).to_dict() if story.found else None


class _Breakdown:
    def __init__(self, story: StoryOfOne):
        self.story = story
        self.parts: dict[Cause, _Part] = {}
        self.path = story.path()
        self.first_ns = self._first_token_ns()
        self.start_ns, self.end_ns = self._bounds()
        self._now = self.start_ns
        self._computed = 0  # tokens that a preemption lost
        self._preempted_for = ""
        self._walk()

    def to_dict(self) -> dict[str, Any]:
        first = self.first_ns - self.start_ns if self.first_ns else None
        return {
            "request_id": self.story.request_id,
            "sequence": self.story.slowest,
            "whole_ns": self.end_ns - self.start_ns,
            "first_token_ns": first,
            "ended": self.story.ended,
            "parts": [
                {
                    "cause": cause.cause,
                    "who": [cause.who] if cause.who else list(part.others)[:MOST_NAMED],
                    "for": cause.what_for,
                    "ns": part.ns,
                    "before_first_token_ns": part.before_first,
                    "steps": part.steps,
                    "why": part.why,
                }
                for cause, part in self.parts.items()
            ],
        }

    # ------------------------------------------------------------------------------ its stretches

    def _bounds(self) -> tuple[int, int]:
        story = self.story
        first = story.received or (self.path[0] if self.path else story.tokenized)
        assert first is not None, "a request was found, but no event of it"
        if not story.ended:
            return first.ts_ns, story.last_ns
        last = self.path[-1].ts_ns
        if story.answered is not None:
            last = max(last, story.answered.ts_ns)
        return first.ts_ns, max(first.ts_ns, last)

    def _first_token_ns(self) -> int:
        """Return when the step ended that drew its first token; 0 if none did."""
        names = {turn.request_id for turn in self.path}
        for step in self.story.steps:
            if any(row.samples and row.request_id in names for row in step.rows):
                finished = self.path[-1].ts_ns if self.story.ended else step.end_ns
                return min(step.end_ns, finished)
        return 0

    def _walk(self) -> None:
        """Give every stretch from the first moment to the last its cause."""
        story = self.story
        if story.received is not None and story.tokenized is not None:
            self._until(story.tokenized.ts_ns, Cause("tokenizing"))
        state: Event | None = None
        for turn in self.path:
            self._stretch(state, turn.ts_ns)
            state = turn
        if not story.ended:
            self._stretch(state, self.end_ns)
        elif story.answered is not None:
            text_known = story.answered.ts_ns - round(story.answered.sending_us * 1e3)
            self._until(text_known, Cause("detokenizing"))
            self._until(self.end_ns, Cause("sending"))

    def _stretch(self, state: Event | None, end_ns: int) -> None:
        """Give the time from now to `end_ns` its causes. `state`: what the last turn was."""
        if isinstance(state, ev.RequestQueued | ev.RequestPreempted):
            self._until(min(end_ns, self.story.known_ns), Cause("not recorded"))
            self._waits(state, end_ns)
        elif isinstance(state, ev.RequestAdmitted | ev.RequestResumed | ev.RequestForked):
            self._until(min(end_ns, self.story.known_ns), Cause("not recorded"))
            self._steps(end_ns)
        else:
            self._until(end_ns, Cause("to the engine"))

    def _until(self, end_ns: int, cause: Cause) -> _Part:
        """Book the time from now to `end_ns`, if there is any, to one cause."""
        end_ns = min(end_ns, self.end_ns)
        ns = max(0, end_ns - self._now)
        return self._book(cause, ns)

    def _book(self, cause: Cause, ns: int) -> _Part:
        """Book the next `ns` nanoseconds."""
        if not ns:
            return self.parts.get(cause) or _Part()
        part = self.parts.setdefault(cause, _Part())
        part.ns += ns
        part.before_first += max(0, min(self._now + ns, self.first_ns) - self._now)
        self._now += ns
        return part

    # ------------------------------------------------------------------------------ waiting

    def _waits(self, state: ev.RequestQueued | ev.RequestPreempted, end_ns: int) -> None:
        """Divide a stretch in the queue by what its head waited for."""
        preempted = isinstance(state, ev.RequestPreempted)
        if isinstance(state, ev.RequestPreempted):
            self._computed = max(self._computed, state.num_computed_tokens)
            self._preempted_for = "" if state.for_request == state.request_id else state.for_request
        kind = "preempted" if preempted else "queued"
        waits = [wait for wait in self.story.waits if wait.since_ns < end_ns]
        for wait, following in zip(waits, [*waits[1:], None]):
            until = min(end_ns, following.since_ns) if following else end_ns
            event = wait.event
            head = event.request_id if event is not None else ""
            what_for = event.waits_for if event is not None else "the next step"
            who = self._preempted_for if preempted else "" if head in self._names else head
            part = self._until(until, Cause(kind, who, what_for))
            part.others.update(dict.fromkeys(wait.running))
            part.why = state.why if isinstance(state, ev.RequestPreempted) else part.why
            if event is not None and not preempted:
                part.why = event.why
        self._until(end_ns, Cause(kind, self._preempted_for, "the next step"))

    @property
    def _names(self) -> set[str]:
        return {turn.request_id for turn in self.path}

    # ------------------------------------------------------------------------------ running

    def _steps(self, end_ns: int) -> None:
        """Divide a stretch in which it runs by steps: one's time reaches from the end of the one
        before to its own end."""
        for step in self.story.steps:
            if step.end_ns <= self._now:
                continue
            self._step(step, min(step.end_ns, end_ns) - self._now)
            if step.end_ns >= end_ns:
                return
        self._until(end_ns, LOOP)  # the step at the record's end hasn't finished

    def _step(self, step: EndedStep, ns: int) -> None:
        names = self._names
        mine = [row for row in step.rows if row.request_id in names]
        finished = step.finished
        lengths: dict[Cause, int] = {LOOP: 0}

        def add(cause: Cause, us: float) -> None:
            lengths[cause] = lengths.get(cause, 0) + round(us * 1e3)

        add(LOOP, finished.schedule_us + finished.update_us + finished.ready_us)
        add(Cause("swap", self._other(step.swaps)) if step.swaps else LOOP, finished.prepare_us)
        add(OWN_DECODE, finished.draft_us)
        add(SAMPLING, finished.sample_us)
        add(RECORDING, finished.record_us)
        forward = round(finished.forward_us * 1e3)
        for cause, share in self._forward(step, mine, forward).items():
            lengths[cause] = lengths.get(cause, 0) + share
        for cause, share in fit_in(ns, lengths, LOOP).items():
            self._book(cause, share).steps += 1

    def _forward(self, step: EndedStep, mine: list[ev.StepRow], ns: int) -> dict[Cause, int]:
        """Divide what the model took in a step: for the request, and for others' prompts."""
        others = [row for row in step.rows if row.num_tokens > 1 and row not in mine]
        prompts = {row.request_id: row.num_tokens for row in others}
        total = sum(row.num_tokens for row in step.rows)
        if not mine:  # the others' tokens filled the step's budget, or its last token is in flight
            largest = max(step.rows, key=lambda row: row.num_tokens, default=None)
            return {Cause("left out", largest.request_id if largest else ""): ns}
        row = mine[0]
        added = ns * sum(prompts.values()) // max(1, total)
        if row.num_tokens == 1 and self.story.decode_us:
            # More than a step of as many rows takes that only decodes.
            added = max(0, ns - round(self._decode_us(len(step.rows)) * 1e3))
        if not prompts:
            added = 0
        own = OWN_DECODE
        if row.start < self._computed:
            own = Cause(AGAIN.cause, self._preempted_for)
        elif row.num_tokens > 1 or not row.samples or row.start < self._prompt_tokens:
            own = OWN_PREFILL
        delayed = divide(added, {Cause("others' prompts", who): n for who, n in prompts.items()})
        return {own: ns - sum(delayed.values()), **delayed}

    def _decode_us(self, rows: int) -> float:
        nearest = min(self.story.decode_us, key=lambda known: abs(known - rows))
        return self.story.decode_us[nearest]

    @property
    def _prompt_tokens(self) -> int:
        return self.story.queued.num_prompt_tokens if self.story.queued else 0

    def _other(self, name: str) -> str:
        return "" if name in self._names else name
