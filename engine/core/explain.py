"""Record the scheduler's decisions as events with their reasons.

The scheduler calls it where it decides. The words are here, so that the decisions can be read
without them.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from engine.core.core_record import CoreRecord
from engine.core.kv_manager import KVManager
from engine.core.messages import StepPlan
from engine.core.request import Request
from engine.core.waiting_queue import WaitingQueue
from engine.trace import events
from engine.trace.wording import count, free


class Scheduling(Protocol):
    """State what the words take from a scheduler: its limits, its queues, the pool."""

    budget: int  # tokens of a step
    max_num_seqs: int
    seats_taken: int
    running: list[Request]
    waiting: WaitingQueue
    kv: KVManager


class Shortage(NamedTuple):
    """Hold what a running request lacks: `need` blocks, to compute `num_tokens` more tokens."""

    request: Request
    num_tokens: int
    need: int


class Explainer:
    """Record the decisions of one scheduler."""

    def __init__(self, record: CoreRecord):
        self.record = record
        self._last_wait = ("", "")  # (request, what it waits for) of the last request.waiting

    def plan(self, state: Scheduling, plan: StepPlan) -> None:
        if not self.record.enabled:
            return
        pool = state.kv.pool
        self.record.record(
            events.StepPlanned(
                rows=plan.rows,
                budget=state.budget,
                budget_used=plan.num_tokens,
                num_running=len(state.running),
                num_waiting=len(state.waiting),
                blocks_used=pool.num_used,
                blocks_cached_free=pool.num_cached_free,
                blocks_free=pool.num_free - pool.num_cached_free,
                host_blocks_used=state.kv.host_pool.num_used,
                schedule_us=round(plan.schedule_us, 1),
            )
        )

    def admission(self, request: Request, resumed_from: str, prefix_tokens: int) -> None:
        """Record an admission. `resumed_from` is how the request was preempted, "" if it never
        was."""
        self._last_wait = ("", "")
        if not self.record.enabled:
            return
        waited_us = round((self.record.recorder.clock() - request.waiting_since_ns) / 1e3, 1)
        if not resumed_from:
            self.record.record(
                events.RequestAdmitted(
                    request_id=request.id,
                    waited_us=waited_us,
                    num_tokens=request.num_tokens,
                    num_cached_tokens=prefix_tokens,
                    why=_free_for(request),
                )
            )
            return
        swapped = resumed_from == "swap"
        self.record.record(
            events.RequestResumed(
                request_id=request.id,
                mode=resumed_from,
                waited_us=waited_us,
                num_tokens=request.num_tokens,
                num_cached_tokens=request.num_computed_tokens if swapped else prefix_tokens,
                why="its blocks are copied back in" if swapped else "its K/V are computed again",
            )
        )

    def fork(self, parent: Request, child: Request) -> None:
        self.record.record(
            events.RequestForked(
                request_id=child.id,
                parent=parent.id,
                index=child.index,
                num_computed_tokens=parent.num_computed_tokens,
                why=f"sequence {child.index + 1} of {parent.core.params.n}: the prompt was computed"
                " once for all",
            )
        )

    def preemption(
        self,
        state: Scheduling,
        victim: Request,
        shortage: Shortage,
        mode: str,
        recompute_ms: float,
        swap_ms: float,
        mode_why: str,
    ) -> None:
        """Record why the victim gives its blocks back. Call while it still runs and has them."""
        if not self.record.enabled:
            return
        winner, available = shortage.request, state.kv.pool.num_free
        first, last = winner.num_planned_tokens, winner.num_planned_tokens + shortage.num_tokens - 1
        tokens = f"token {first}" if first == last else f"tokens {first}–{last}"
        itself, seats = victim is winner, state.seats_taken
        self.record.record(
            events.RequestPreempted(
                request_id=victim.id,
                mode=mode,
                num_blocks=len(victim.block_table),
                num_computed_tokens=victim.num_computed_tokens,
                for_request=winner.id,
                need=shortage.need,
                available=available,
                recompute_ms=round(recompute_ms, 6),
                swap_ms=round(swap_ms, 6),
                mode_why=mode_why,
                why=f"{'it' if itself else winner.id} needs {count(shortage.need, 'block')} for"
                f" {tokens}, {free(available, 'block')}; {'it' if itself else victim.id} is the"
                f" last by rank of {len(state.running)} that run; a larger pool"
                " (--num-gpu-blocks-override)"
                + (f" or fewer seats (--max-num-seqs {seats - 1})" if seats > 1 else "")
                + " would help",
            )
        )

    def wait(
        self, state: Scheduling, head: Request | None, waits_for: str, need: int, available: int
    ) -> None:
        """Record why the head of the queue waits, once for each reason."""
        if head is None or not self.record.enabled or self._last_wait == (head.id, waits_for):
            return
        self._last_wait = (head.id, waits_for)
        event = events.RequestWaiting(
            request_id=head.id,
            waits_for=waits_for,
            need=need,
            available=available,
            behind=len(state.waiting) - 1,
            why={
                "budget": f"the running requests use all {state.budget} tokens of the step",
                "seats": f"{state.seats_taken} of {state.max_num_seqs} seats are taken",
                "blocks": f"{count(need, 'block')} needed for {count(head.num_tokens, 'token')},"
                f" {free(available, 'block')}",
                "preemption": "a running request was preempted in this step: nobody is admitted",
            }[waits_for],
        )
        if waits_for in ("blocks", "seats") and state.running:
            first = min(state.running, key=_steps_left)
            event.next_release = first.id
            event.next_release_steps = _steps_left(first)
            references = state.kv.pool.references
            alone = sum(references[block] == 1 for block in first.block_table)
            event.next_release_amount = alone if waits_for == "blocks" else first.seats
        self.record.record(event)


def _free_for(request: Request) -> str:
    seats = "a seat" if request.seats == 1 else f"{request.seats} seats"
    return f"{seats} and blocks for {count(request.num_tokens, 'token')} are free"


def _steps_left(request: Request) -> int:
    """Return the number of steps after which the request must have ended, if nothing delays it."""
    return max(1, request.max_tokens - request.num_output_tokens)
