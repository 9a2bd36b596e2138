"""Summarize a stretch of time: tokens computed, requests running and waiting, blocks, milliseconds.

The wording can't be misread: the parts of a sum stand beside it, a cached block that nobody reads
is not "used", and the stretch is the time that the events really cover.
"""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.events import Event
from engine.trace.wording import count, joined, milliseconds

SUMMARY_EVERY_S = 10.0


class Summary:
    """Add up events since `start`; `lines` words the sums. `clear` starts the next stretch."""

    def __init__(self) -> None:
        self.waits_for = ""  # the head of the queue, as last recorded
        self.last_plan: ev.StepPlanned | None = None
        self.clear()

    def clear(self) -> None:
        """Start a new stretch with the next event."""
        self.start_ns = 0
        self.end_ns = 0
        self.num_steps = 0
        self.computed = 0
        self.decoded = 0
        self.sampled = 0
        self.from_cache = 0
        self.finished = 0
        self.preemptions = 0
        self.schedule_us = self.execute_us = self.sample_us = self.record_us = self.total_us = 0.0

    def see(self, event: Event) -> None:
        """Add one event."""
        self.start_ns = self.start_ns or event.ts_ns
        self.end_ns = event.ts_ns
        if isinstance(event, ev.StepFinished):
            self.num_steps += 1
            self.computed += event.num_tokens
            self.decoded += event.num_decode_tokens
            self.sampled += event.num_sampled
            self.schedule_us += event.schedule_us
            self.execute_us += event.prepare_us + event.draft_us + event.forward_us
            self.sample_us += event.sample_us
            self.record_us += event.record_us
            self.total_us += event.total_us
        elif isinstance(event, ev.StepPlanned):
            self.last_plan = event
        elif isinstance(event, ev.RequestAdmitted | ev.RequestResumed):
            self.from_cache += event.num_cached_tokens
        elif isinstance(event, ev.RequestWaiting):
            self.waits_for = event.waits_for
        elif isinstance(event, ev.RequestPreempted):
            self.preemptions += 1
        elif isinstance(event, ev.RequestFinished | ev.RequestAborted):
            self.finished += 1

    def due(self, now_ns: int) -> bool:
        """Return whether the stretch is long enough and some step computed something in it."""
        return self.num_steps > 0 and now_ns - self.start_ns >= SUMMARY_EVERY_S * 1e9

    def lines(self, context: Context) -> list[str]:
        """Word the sums: time, tokens, requests, blocks, the average step."""
        seconds = (self.end_ns - self.start_ns) / 1e9
        per_second = f" ({self.sampled / seconds:,.0f} a second)" if seconds else ""
        return [
            f"the last {seconds:.1f} s: {count(self.num_steps, 'step')}, "
            f"{count(self.sampled, 'token')} drawn{per_second}",
            f"tokens    {self.computed:,} computed = {self.computed - self.decoded:,} prefill + "
            f"{self.decoded:,} decode; {self.from_cache:,} more were in the cache",
            "requests  " + self._queues(context),
            "blocks    " + self._blocks(context),
            "a step    " + self._average_step(),
        ]

    def _queues(self, context: Context) -> str:
        running = waiting = 0
        if context.state is not None:
            running, waiting = len(context.state.running), len(context.state.waiting)
        elif self.last_plan is not None:
            running, waiting = self.last_plan.num_running, self.last_plan.num_waiting
        what_for = f" (the first for {self.waits_for})" if waiting and self.waits_for else ""
        return joined(
            [
                f"{running:,} running",
                f"{waiting:,} waiting{what_for}",
                f"{self.finished:,} ended",
                count(self.preemptions, "preemption"),
            ]
        )

    def _blocks(self, context: Context) -> str:
        state, plan = context.state, self.last_plan
        if state is not None and state.num_blocks:
            free = len(state.free_queue)
            used = state.num_blocks - free
            kept = sum(not state.references[block] for block in state.hashes)
            empty = free - kept
        elif plan is not None:
            used, kept, empty = plan.blocks_used, plan.blocks_cached_free, plan.blocks_free
        else:
            return "unknown"
        share = f"{used / max(1, used + kept + empty):.0%}"
        return (
            f"{used:,} used ({share}), {kept:,} cached and free, {empty:,} empty, "
            f"of {used + kept + empty:,}"
        )

    def _average_step(self) -> str:
        steps = max(1, self.num_steps)
        parts = {
            "schedule": self.schedule_us,
            "execute": self.execute_us,
            "sample": self.sample_us,
        }
        if self.record_us:
            parts["record"] = self.record_us
        parts["other"] = max(0.0, self.total_us - sum(parts.values()))
        split = " + ".join(f"{name} {milliseconds(us / steps)}" for name, us in parts.items())
        return f"{milliseconds(self.total_us / steps)} ms = {split}"
