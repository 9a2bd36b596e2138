"""Tell the record as a story: the lines a person wants to read, in an order that makes sense.

A line isn't an event. Sixty decode steps of a chat are one line ("steps 2–61: decodes 60 tokens,
one a step, 2.1 ms a step, takes blocks 10, 11"). A step that computes prompts has its own line,
with what it computed and how long its parts took. Events that a step caused (a block cached, a
request finished) follow it. Every other decision keeps its line.

    story = Story()
    for line in story.tell(events): …      # as often as there are new events
    for line in story.end(): …             # what was still open
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engine.trace import events as ev
from engine.trace.annotate import describe
from engine.trace.context import Context
from engine.trace.events import Event, kind
from engine.trace.sentences.blocks import evictions
from engine.trace.sentences.steps import rows_in_words, time_split
from engine.trace.summary import Summary
from engine.trace.wording import blocks, count, duration, joined

LONGEST_RUN_S = 5.0  # a run of decode steps gets a line at least this often

_AT_ONCE = (ev.RequestQueued, ev.RequestRefused, ev.EngineWarning, ev.EngineFailed)
"""Lines written immediately; other events of the core wait for the end of the step in flight."""

_GROWTH = (ev.BlockAllocated, ev.BlockCached, ev.BlockEvicted, ev.SpecVerified)
"""Frequent events of decoding: part of the run's line."""


@dataclass(slots=True)
class Line:
    """Hold one line of the log. `kind` is the event's, or "steps" for steps, or "summary"."""

    ts_ns: int
    text: str
    kind: str
    first_step: int = 0
    last_step: int = 0
    request_id: str = ""
    name: str = ""  # of the request, short


class Run:
    """Collect consecutive decode steps of the same requests."""

    def __init__(self, first: ev.StepFinished, rows: list[ev.StepRow]) -> None:
        self.ids = _names(rows)
        self.first = first
        self.last = first
        self.steps = 0
        self.sums = ev.StepFinished(loop=first.loop)
        self.taken: list[int] = []
        self.num_cached = 0
        self.num_evicted = 0
        self.num_proposals = 0
        self.num_right = 0

    def continues(self, event: ev.StepFinished, rows: list[ev.StepRow]) -> bool:
        young = event.ts_ns - self.first.ts_ns < LONGEST_RUN_S * 1e9
        return young and _names(rows) == self.ids

    def add(self, event: ev.StepFinished, growth: list[Event]) -> None:
        self.last = event
        self.steps += 1
        for name in (
            "num_tokens",
            "num_sampled",
            "schedule_us",
            "prepare_us",
            "draft_us",
            "forward_us",
            "sample_us",
            "record_us",
            "total_us",
        ):
            setattr(self.sums, name, getattr(self.sums, name) + getattr(event, name))
        for happened in growth:
            if isinstance(happened, ev.BlockAllocated):
                self.taken += happened.blocks
            elif isinstance(happened, ev.BlockCached):
                self.num_cached += len(happened.blocks)
            elif isinstance(happened, ev.SpecVerified):
                self.num_proposals += happened.num_proposed
                self.num_right += happened.num_accepted
            else:
                self.num_evicted += 1

    def line(self, context: Context) -> Line:
        alone = len(self.ids) == 1
        tokens = count(
            self.sums.num_sampled if self.num_proposals else self.sums.num_tokens, "token"
        )
        each = "" if self.steps == 1 else ", one a step" if alone else ", one each a step"
        if self.num_proposals:
            each = f" in {count(self.steps, 'step')}"
        proposals = count(self.num_proposals, "proposed token")
        who = "decodes" if alone else f"{len(self.ids)} requests decode"
        took = blocks(self.taken) if len(self.taken) <= 8 else count(len(self.taken), "block")
        text = joined(
            [
                f"{who} {tokens}{each}",
                self._time(),
                f"{self.num_right} of {proposals} right" if self.num_proposals else "",
                f"takes {took}" if self.taken else "",
                f"{self.num_cached} cached" if self.num_cached else "",
                f"{self.num_evicted} evicted" if self.num_evicted else "",
            ],
            "; ",
        )
        return Line(
            ts_ns=self.last.ts_ns,
            text=text,
            kind="steps",
            first_step=self.first.step,
            last_step=self.last.step,
            request_id=self.ids[0] if alone else "",
            name=context.name(self.ids[0]) if alone else "",
        )

    def _time(self) -> str:
        if self.last.loop == "overlapped" and self.steps > 1:
            # Steps overlap, so the sum of their own times exceeds the elapsed time.
            interval = (self.last.ts_ns - self.first.ts_ns) / 1e3 / (self.steps - 1)
            return f"a step every {duration(interval)}"
        return f"{'a step ' if self.steps > 1 else ''}{time_split(self.sums, self.steps)}"


def _names(rows: list[ev.StepRow]) -> list[str]:
    """Return the sequences of a step; one with proposals has several rows."""
    return list(dict.fromkeys(row.request_id for row in rows))


class Story:
    """Turn events into lines. Keeps an open run of decode steps, and events that a step will
    explain.
    """

    def __init__(self, with_summaries: bool = True, joined: bool = True) -> None:
        self.joined = joined  # False: one line for each event, as it stands in the record
        self.context = Context()
        self.summary = Summary() if with_summaries else None
        self._run: Run | None = None
        self._before: list[Event] = []  # growth that its step's plan will explain
        self._after: list[tuple[Event, Line]] = []  # events that the step caused, written after it
        self._kernels: Counter[str] = Counter()

    def tell(self, events: Iterable[Event]) -> Iterator[Line]:
        """Yield the lines that these events complete. Events come in order, in batches of any
        size."""
        for event in events:
            if self.summary is not None:
                if self.summary.due(event.ts_ns):
                    yield from self._summarize()
                self.summary.see(event)
            self.context.see(event)
            if not self.joined:
                yield self._line(event)
            elif isinstance(event, ev.StepFinished):
                yield from self._step(event)
            elif isinstance(event, ev.KernelLaunched):
                self._kernels[event.name] += 1
            elif isinstance(event, ev.StepPlanned | ev.TextTokens | ev.RequestAnswered):
                pass  # the step's line follows at its end, token texts in `sample.drawn`
            elif isinstance(event, _GROWTH) and not self.context.plans:
                self._before.append(event)
            elif self.context.plans and event.src == "core" and not isinstance(event, _AT_ONCE):
                self._after.append((event, self._line(event)))
            else:
                yield from self._close_run()
                yield from self._tell_growth()
                if isinstance(event, ev.EngineFailed):  # no step will end any more
                    yield from self._tell_after()
                yield self._line(event)

    def end(self) -> Iterator[Line]:
        """Yield the lines that are still open: the record ends here."""
        yield from self._close_run()
        yield from self._tell_growth()
        yield from self._tell_after()
        if self.summary is not None and self.summary.num_steps:
            yield from self._summarize()

    # ------------------------------------------------------------------------------ details

    def _step(self, event: ev.StepFinished) -> Iterator[Line]:
        rows = self.context.finish_step(event.step)
        if rows and all(row.num_tokens == 1 for row in rows) and not self._kernels:
            if self._run is not None and not self._run.continues(event, rows):
                yield from self._close_run()
            growth = self._take_growth(event.step)
            self._run = self._run or Run(event, rows)
            self._run.add(event, growth)
            if self._after:
                yield from self._close_run()
        else:
            yield from self._close_run()
            yield from self._tell_growth()
            yield self._step_line(event, rows)
            yield from self._tell_kernels(event)
        yield from self._tell_after()

    def _take_growth(self, step: int) -> list[Event]:
        """Return the growth that belongs to this step.

        The overlapped loop has already planned the next step: the growth of that one stays.
        """
        held = self._before + [event for event, _line in self._after if isinstance(event, _GROWTH)]
        self._after = [told for told in self._after if not isinstance(told[0], _GROWTH)]
        own = [event for event in held if isinstance(event, ev.BlockCached) or event.step <= step]
        self._before = [event for event in held if not any(event is mine for mine in own)]
        return own

    def _step_line(self, event: ev.StepFinished, rows: list[ev.StepRow]) -> Line:
        work = rows_in_words(rows, self.context)
        tokens = count(event.num_tokens, "token")
        return Line(
            ts_ns=event.ts_ns,
            text=f"computes {tokens}: {work}; draws {event.num_sampled:,}; {time_split(event)}",
            kind="steps",
            first_step=event.step,
            last_step=event.step,
            request_id=rows[0].request_id if len(rows) == 1 else "",
            name=self.context.name(rows[0].request_id) if len(rows) == 1 else "",
        )

    def _line(self, event: Event) -> Line:
        name = self.context.name(event.request_id) if event.request_id else ""
        text = describe(event, self.context)
        return Line(event.ts_ns, text, kind(event), event.step, event.step, event.request_id, name)

    def _close_run(self) -> Iterator[Line]:
        if self._run is not None:
            yield self._run.line(self.context)
            self._run = None

    def _tell_growth(self) -> Iterator[Line]:
        yield from self._join_evictions((event, self._line(event)) for event in self._before)
        self._before = []

    def _tell_after(self) -> Iterator[Line]:
        yield from self._join_evictions(self._after)
        self._after = []

    def _join_evictions(self, told: Iterable[tuple[Event, Line]]) -> Iterator[Line]:
        """Yield the lines, with consecutive evictions for the same reason joined into one."""
        lost: list[int] = []
        why, open_line = "", None
        for event, line in told:
            if isinstance(event, ev.BlockEvicted) and event.why == why and open_line is not None:
                lost.append(event.block)
                open_line.text = evictions(lost, why, self.context)
                continue
            if open_line is not None:
                yield open_line
                open_line = None
            if isinstance(event, ev.BlockEvicted):
                lost, why, open_line = [event.block], event.why, line
            else:
                yield line
        if open_line is not None:
            yield open_line

    def _tell_kernels(self, event: ev.StepFinished) -> Iterator[Line]:
        if self._kernels:
            named = joined(f"{name} × {times}" for name, times in self._kernels.most_common(6))
            more = len(self._kernels) - 6
            text = f"launched {count(self._kernels.total(), 'kernel')}: {named}"
            text += f" and {more} more kinds" if more > 0 else ""
            yield Line(event.ts_ns, text, "kernel.launched", event.step, event.step)
            self._kernels.clear()

    def _summarize(self) -> Iterator[Line]:
        assert self.summary is not None
        yield from self._close_run()
        for text in self.summary.lines(self.context):
            yield Line(self.summary.end_ns, text, "summary")
        self.summary.clear()
