"""Collect from a record what one request's time went to: its states, and the steps meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median_low

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of

_TURNS = (
    ev.RequestQueued, ev.RequestAdmitted, ev.RequestForked, ev.RequestPreempted,
    ev.RequestResumed, ev.RequestFinished, ev.RequestAborted, ev.RequestRefused,
)  # fmt: skip
_SWAPS = (ev.BlockSwappedIn, ev.BlockSwappedOut)


@dataclass(slots=True)
class EndedStep:
    """Hold a step that ended while the request was alive."""

    end_ns: int
    finished: ev.StepFinished
    rows: list[ev.StepRow]
    swaps: str = ""  # a request whose blocks were copied in it


@dataclass(slots=True)
class Wait:
    """Hold what the head of the queue waited for, from a moment on; nothing: for the next step."""

    since_ns: int
    event: ev.RequestWaiting | None
    running: tuple[str, ...]  # requests that ran then


@dataclass
class StoryOfOne:
    """Hold what a record says about one request."""

    request_id: str
    received: ev.RequestReceived | None = None
    tokenized: ev.RequestTokenized | None = None
    answered: ev.RequestAnswered | None = None
    turns: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))  # by sequence
    steps: list[EndedStep] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    known_ns: int = 0  # the record begins here: steps before it are gone
    last_ns: int = 0  # of the record
    decode_us: dict[int, float] = field(default_factory=dict)
    """Rows → median forward time of the record's steps that only decode."""

    @property
    def found(self) -> bool:
        return bool(self.turns or self.received)

    @property
    def queued(self) -> ev.RequestQueued | None:
        for event in self.turns.get(self.request_id, ()):
            if isinstance(event, ev.RequestQueued):
                return event
        return None

    @property
    def slowest(self) -> str:
        """Return the sequence that ended last: the answer is complete only with it."""
        return max(self.turns, key=lambda name: self.turns[name][-1].ts_ns, default=self.request_id)

    @property
    def ended(self) -> bool:
        ends = (ev.RequestFinished, ev.RequestAborted, ev.RequestRefused)
        return bool(self.turns) and all(isinstance(t[-1], ends) for t in self.turns.values())

    def path(self) -> list[Event]:
        """Return the turns that led to the end: of the slowest sequence and, until it forked, of
        its parent."""
        own = self.turns.get(self.slowest, [])
        fork = own[0] if own and isinstance(own[0], ev.RequestForked) else None
        if fork is None:
            return own
        parent = self.turns.get(fork.parent, [])
        return [turn for turn in parent if turn.ts_ns <= fork.ts_ns] + own


def read(events: Iterable[Event], request_id: str) -> StoryOfOne:
    """Read the record once."""
    story = StoryOfOne(request_id)
    plans: dict[int, list[ev.StepRow]] = {}
    swaps: dict[int, str] = {}
    running: dict[str, None] = {}
    decode_us: dict[int, list[float]] = defaultdict(list)
    wait: ev.RequestWaiting | None = None
    for event in _with_standing(events, story):
        story.last_ns = max(story.last_ns, event.ts_ns)
        mine = bool(event.request_id) and request_id in (
            event.request_id, request_of(event.request_id)
        )  # fmt: skip
        if isinstance(event, ev.StepPlanned):
            plans[event.step] = event.rows
        elif isinstance(event, ev.StepFinished):
            rows = plans.pop(event.step, [])
            if rows and all(row.num_tokens == 1 and row.samples for row in rows):
                decode_us[len(rows)].append(event.forward_us)
            swapped = swaps.pop(event.step, "")
            if story.turns and not (story.ended and story.steps[-1:] and _closed(story)):
                story.steps.append(EndedStep(event.ts_ns, event, rows, swapped))
        elif isinstance(event, _SWAPS):
            swaps[event.step] = event.request_id
        elif isinstance(event, ev.RequestWaiting):
            wait = event
            story.waits.append(Wait(event.ts_ns, wait, tuple(running)))
        elif isinstance(event, ev.RequestReceived) and mine:
            story.received = event
        elif isinstance(event, ev.RequestTokenized) and mine:
            story.tokenized = event
        elif isinstance(event, ev.RequestAnswered) and mine:
            story.answered = event
        elif isinstance(event, _TURNS):
            _turn(event, running)
            if mine:
                story.turns[event.request_id].append(event)
            if isinstance(event, ev.RequestAdmitted | ev.RequestResumed):
                wait = None  # the next head's reason is not known yet
                story.waits.append(Wait(event.ts_ns, None, tuple(running)))
            if mine and isinstance(event, ev.RequestQueued):
                # The head may have waited before this one came.
                story.waits = [Wait(event.ts_ns, wait, tuple(running))]
    story.decode_us = {rows: median_low(times) for rows, times in decode_us.items()}
    return story


def _closed(story: StoryOfOne) -> bool:
    """Return whether a step was kept that ended after the request did."""
    last = max(turns[-1].ts_ns for turns in story.turns.values())
    return story.steps[-1].end_ns >= last


def _turn(event: Event, running: dict[str, None]) -> None:
    if isinstance(event, ev.RequestAdmitted | ev.RequestResumed | ev.RequestForked):
        running[event.request_id] = None
    else:
        running.pop(event.request_id, None)


def _with_standing(events: Iterable[Event], story: StoryOfOne) -> Iterator[Event]:
    """Yield the events; before a snapshot, those with which its living requests began."""
    for event in events:
        if isinstance(event, ev.EngineSnapshot):
            yield from event.standing
            story.known_ns = event.ts_ns
        yield event
