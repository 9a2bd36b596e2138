"""Plan each step in one pass, with one token budget: a StepPlan.

Each step gives each request `min(tokens not yet computed, budget left)` tokens (rule 2): first the
running ones, in rank order, then the head of the waiting queue, and the next head, until one can't
be admitted (rule 3). If a running request can't get its block, the lowest-ranked running one is
preempted, again and again, until the block is free or the request itself was the lowest. After a
preemption no waiting request is admitted in that step.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from engine.config import BUDGET, EngineConfig
from engine.config.speculative import Speculation
from engine.core.block_pool import BlockPool, OutOfBlocks
from engine.core.core_record import CoreRecord
from engine.core.explain import Explainer, Shortage
from engine.core.kv_manager import KVManager
from engine.core.messages import KVShape, StepPlan, StepStats
from engine.core.preemption import PreemptionCosts
from engine.core.proposal_rows import ProposalRows
from engine.core.proposer import Proposer, make_proposer
from engine.core.request import Request, Status
from engine.core.waiting_queue import WaitingQueue
from engine.core.worker_rows import WorkerRows
from engine.trace.events import StepRow
from engine.trace.recorder import Recorder
from engine.trace.wording import count, duration, free


class Scheduler:
    """Hold queues, seats and the pool. `schedule()` plans a step, `release()` removes a request.

    `pool` (of that many blocks), `costs` (of swapping a block, in µs) and `proposer` can be
    replaced.
    """

    def __init__(
        self,
        config: EngineConfig,
        kv: KVShape,
        recorder: Recorder,
        *,
        pool: Callable[[int], BlockPool] = BlockPool,
        costs: Callable[[float], PreemptionCosts] = PreemptionCosts,
        proposer: Callable[[Speculation], Proposer] = make_proposer,
    ):
        self.budget = config.max_num_batched_tokens or BUDGET
        self.max_num_seqs = config.max_num_seqs
        self.preemption_mode = config.preemption_mode
        self.recorder = recorder
        self.clock = recorder.clock
        self.record = CoreRecord(recorder)
        self.kv = KVManager(
            kv.num_blocks,
            kv.num_host_blocks,
            kv.block_size,
            kv.bytes_per_block,
            config.enable_prefix_caching,
            self.record,
            pool,
        )
        self.costs = costs(kv.swap_us_per_block)
        self.worker_rows = WorkerRows()
        self.proposals = ProposalRows(config, self.kv, proposer, self.worker_rows.tell)
        self.speculator = self.proposals.speculator
        self.explain = Explainer(self.record)
        self.waiting = WaitingQueue()
        self.running: list[Request] = []  # by rank
        # Finished, but a step in flight still writes to their blocks (rule 8).
        self.leaving: set[Request] = set()
        self.seats_taken = 0
        self.step_number = 0
        self.stats = StepStats(blocks_total=kv.num_blocks)  # of the step being planned
        # Of the last plan: whose its rows are, without those of proposed tokens.
        self.planned: list[Request] = []
        self._swap_out: list[tuple[int, int]] = []  # the next plan carries these

    # ---------------------------------------------------------------------------- the queue's doors

    def add(self, request: Request) -> None:
        request.queued_ns = request.waiting_since_ns = self.clock()
        self.waiting.push(request)

    def fork(self, parent: Request, child: Request) -> None:
        """Start the child beside its parent, on the seat that the parent reserved for it."""
        child.status = Status.RUNNING
        child.first_admitted_ns = parent.first_admitted_ns
        child.queued_ns = parent.queued_ns
        child.num_cached_tokens = parent.num_cached_tokens
        child.num_expected_tokens += 1  # drawn with its parent's
        parent.siblings_to_fork -= 1
        insort(self.running, child, key=_rank)
        self.explain.fork(parent, child)
        self.kv.fork(parent, child)

    def release(self, request: Request, why: str) -> None:
        """Remove an ended request.

        Its blocks and its seat are freed now, or when the last step in flight that uses them has
        returned.
        """
        has_seat = request in self.leaving
        self.proposals.forget(request)
        if request.status is Status.RUNNING:
            self.running.remove(request)
            has_seat, request.status = True, Status.FINISHED
        elif request.status is Status.WAITING:
            request.status = Status.FINISHED
            self.waiting.remove(request)
        if request.tokens_in_flight:
            self.leaving.add(request)
            return
        self.leaving.discard(request)
        if has_seat:
            self.seats_taken -= request.seats
        self.worker_rows.drop(request)
        self.kv.free(request, why)

    @property
    def has_work(self) -> bool:
        return bool(self.running or len(self.waiting) or self.leaving)

    # ------------------------------------------------------------------------------------- one step

    def schedule(self) -> StepPlan | None:
        """Plan the next step. Return None if there is nothing to compute, or if it must wait.

        It must wait if only a preemption would help: that isn't allowed while a step is in flight
        (rule 8). It also waits for a step in flight if proposals may pay: they follow known tokens.
        """
        started = self.clock()
        proposes = self.proposals.possible
        if proposes and self._in_flight():
            if self.proposals.wait_pays(self.running, self.leaving):
                return None
            proposes = False
        if not self._all_running_fit():
            return None
        self.step_number += 1
        self.recorder.step = self.step_number
        self.stats = StepStats(step=self.step_number, blocks_total=self.kv.pool.num_blocks)
        plan = StepPlan(step=self.step_number, rows=[])
        self.planned = []
        budget_left = self._plan_running(plan, self.budget)
        if self.stats.num_preemptions:
            self.explain.wait(self, self.waiting.head(), "preemption", 0, 0)
        else:
            budget_left = self._admit_waiting(plan, budget_left)
            if proposes:
                # Last: proposals get only what nobody else wants.
                budget_left = self.proposals.add(plan, self.planned, budget_left)
        plan.num_tokens = self.budget - budget_left
        plan.swap_out, self._swap_out = self._swap_out, []
        if not plan.rows and not plan.swap_out:
            self.step_number -= 1
            return None
        self.worker_rows.hand_over(plan)
        self._count(plan)
        plan.schedule_us = (self.clock() - started) / 1e3
        self.explain.plan(self, plan)
        return plan

    def break_off(self, plan: StepPlan) -> None:
        """Take the last plan back, of which nobody knows how much was computed.

        Its requests can only be aborted: then no step holds their blocks and seats any more.
        """
        self.worker_rows.take_back(plan)
        for row, request in zip(plan.rows, self.planned):  # rows of proposals follow
            planned = request.num_planned_tokens - row.num_tokens - request.num_proposed_tokens
            # Booked already, maybe, when it was broken off.
            request.num_planned_tokens = max(planned, request.num_computed_tokens)
            request.num_proposed_tokens = 0

    def _all_running_fit(self) -> bool:
        """Return whether planning needs no preemption, or none has to wait.

        That is: the running requests can get their blocks, or no step is in flight.
        """
        # At most one block each to continue in, one to copy, and those of the budget.
        most = 2 * len(self.running) + self.budget // self.kv.block_size
        if most <= self.kv.pool.num_free:
            return True
        if not self._in_flight():
            return True
        budget, wanted = self.budget, 0
        for request in self.running:
            num_tokens = min(request.num_tokens_to_plan, budget)
            budget -= num_tokens
            if num_tokens:
                wanted += self.kv.blocks_to_grow(request, num_tokens)
        return wanted <= self.kv.pool.num_free

    def _in_flight(self) -> bool:
        """Return whether a step in flight computes for a running request."""
        return any(request.tokens_in_flight for request in self.running)

    def _plan_running(self, plan: StepPlan, budget: int) -> int:
        """Plan slots and a row for each running request within the budget; return the rest of
        it."""
        grow = self.kv.grow
        for request in self.running:  # a preemption removes from the end of this list
            wanted = request.num_tokens_to_plan
            num_tokens = wanted if wanted < budget else budget
            if not num_tokens:
                continue
            try:
                copy = grow(request, num_tokens)
            except OutOfBlocks:
                if not self._preempt_for(request, num_tokens):
                    break  # the request itself was preempted
                copy = grow(request, num_tokens)
            if copy:
                plan.copies.append(copy)
            self._add_row(plan, request, num_tokens, num_tokens == wanted)
            budget -= num_tokens
        return budget

    def _preempt_for(self, request: Request, num_tokens: int) -> bool:
        """Preempt requests until a running one has blocks for `num_tokens` more tokens.

        Returns False if it had to be preempted itself.
        """
        while (need := self.kv.blocks_to_grow(request, num_tokens)) > self.kv.pool.num_free:
            victim = self.running[-1]  # the lowest rank; never one that has a row in this plan
            self._preempt(victim, Shortage(request, num_tokens, need))
            if victim is request:
                return False
        return True

    def _admit_waiting(self, plan: StepPlan, budget: int) -> int:
        """Admit waiting requests while budget, seats and blocks allow; return the rest of the
        budget.
        """
        while (head := self.waiting.head()) is not None:
            if self.leaving and self._leaves(head.core.request_id):
                break  # for one step: the worker may have only one sequence of a name
            if not budget:
                self.explain.wait(self, head, "budget", 1, 0)
                break
            if self.seats_taken + head.seats > self.max_num_seqs:
                free_seats = self.max_num_seqs - self.seats_taken
                self.explain.wait(self, head, "seats", head.seats, free_seats)
                break
            prefix = [] if head.host_blocks else self.kv.find_prefix(head)
            # Blocks for all of its tokens, not only for its first chunk: otherwise it might be
            # admitted only to be preempted. Unused cached blocks count: they are free now, and
            # won't be.
            references = self.kv.pool.references
            need = self.kv.blocks_for(head.num_tokens) - sum(references[b] > 0 for b in prefix)
            if need > self.kv.pool.num_free:
                self.explain.wait(self, head, "blocks", need, self.kv.pool.num_free)
                break
            budget -= self._admit(plan, self.waiting.pop(), prefix, budget)
        return budget

    def _leaves(self, request_id: str) -> bool:
        """Return whether a step in flight still has sequences of an ended request with this id."""
        return any(request.core.request_id == request_id for request in self.leaving)

    def _admit(self, plan: StepPlan, request: Request, prefix: list[int], budget: int) -> int:
        """Admit the request; return the tokens that it computes in this step."""
        resumed_from = request.preempted_as
        request.status = Status.RUNNING
        request.preempted_as = ""
        self.seats_taken += request.seats
        insort(self.running, request, key=_rank)
        if not resumed_from:  # what a resumed one finds may be its own, and more than its prompt
            request.num_cached_tokens = len(prefix) * self.kv.block_size
            if self.kv.looks_up(request):
                self.stats.prefix_queries += request.num_tokens
                self.stats.prefix_hits += len(prefix) * self.kv.block_size
        request.first_admitted_ns = request.first_admitted_ns or self.clock()
        self.explain.admission(request, resumed_from, len(prefix) * self.kv.block_size)
        if request.host_blocks:
            plan.swap_in.extend(self.kv.swap_in(request))
        else:
            self.kv.attach_prefix(request, prefix)
        wanted = request.num_tokens_to_plan
        num_tokens = min(wanted, budget)
        copy = self.kv.grow(request, num_tokens)
        assert copy is None, "an admitted request shares only full blocks"
        self._add_row(plan, request, num_tokens, num_tokens == wanted)
        return num_tokens

    def _add_row(
        self, plan: StepPlan, request: Request, num_tokens: int, reaches_end: bool
    ) -> None:
        """Add the request's share of this step to the plan."""
        samples = 1 + request.siblings_to_fork if reaches_end and request.max_tokens else 0
        plan.rows.append(StepRow(request.id, request.num_planned_tokens, num_tokens, samples))
        self.planned.append(request)
        request.num_planned_tokens += num_tokens
        if samples:
            request.num_expected_tokens += 1  # its siblings count their own
        if request.table_sent < len(request.block_table):
            self.worker_rows.tell(plan, request)

    # -------------------------------------------------------------------------- preemption (rule 4)

    def _preempt(self, victim: Request, shortage: Shortage) -> None:
        recompute_ms = self.costs.recompute_ms(victim.num_computed_tokens)
        host_blocks = self.kv.blocks_to_swap(victim)
        swap_ms = self.costs.swap_ms(host_blocks)
        mode, mode_why = self._preemption_choice(host_blocks, recompute_ms, swap_ms)
        self.explain.preemption(self, victim, shortage, mode, recompute_ms, swap_ms, mode_why)
        self.running.remove(victim)
        self.seats_taken -= victim.seats
        victim.status = Status.WAITING
        victim.preempted_as = mode
        victim.num_preemptions += 1
        victim.waiting_since_ns = self.clock()
        self.waiting.push(victim)
        self.worker_rows.drop(victim)
        self.stats.num_preemptions += 1
        if mode == "swap":
            self._swap_out.extend(self.kv.swap_out(victim))
        else:
            self.kv.free(victim, "preempted")
            victim.set_computed(0)
            victim.prompt_logprobs = []

    def _preemption_choice(
        self, host_blocks: int, recompute_ms: float, swap_ms: float
    ) -> tuple[str, str]:
        wanted = self.preemption_mode
        if wanted == "recompute" or host_blocks == 0:
            return "recompute", "nothing is computed yet" if host_blocks == 0 else "as configured"
        if host_blocks > self.kv.host_pool.num_free:
            free_blocks = free(self.kv.host_pool.num_free, "host block")
            return "recompute", f"swapping needs {count(host_blocks, 'host block')}, {free_blocks}"
        if wanted == "swap":
            return "swap", "as configured"
        mode = "swap" if swap_ms < recompute_ms else "recompute"
        copying, computing = duration(swap_ms * 1e3), duration(recompute_ms * 1e3)
        return mode, f"copying takes {copying} out and in, computing {computing}"

    def _count(self, plan: StepPlan) -> None:
        pool, stats = self.kv.pool, self.stats
        stats.num_running = len(self.running)
        stats.num_waiting = len(self.waiting)
        stats.blocks_used = pool.num_used
        stats.blocks_cached_free = pool.num_cached_free
        stats.host_blocks_used = self.kv.host_pool.num_used
        stats.num_tokens = plan.num_tokens


def _rank(request: Request) -> tuple[int, int, int]:
    return request.rank
