"""Add rows for proposed tokens to plans: those that grammars force, and those of a proposer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from engine.config import EngineConfig
from engine.config.speculative import PROPOSED, Speculation
from engine.core.kv_manager import KVManager
from engine.core.messages import StepPlan
from engine.core.proposal_room import forced_proposals, most_forced, that_fit
from engine.core.proposer import Proposer
from engine.core.request import Request, Status
from engine.core.speculator import Speculator
from engine.trace.events import StepRow


class ProposalRows:
    """Add the rows of proposals, last of all: they get only what nobody else wants."""

    def __init__(
        self,
        config: EngineConfig,
        kv: KVManager,
        proposer: Callable[[Speculation], Proposer],
        tell_worker: Callable[[StepPlan, Request], None],
    ) -> None:
        """Make the proposer, if one is asked for. tell_worker: adds new blocks to a plan."""
        self.kv = kv
        self._tell_worker = tell_worker
        asked = config.speculation
        self.speculator: Speculator | None = None
        self._max_rows = config.max_step_rows
        self._most_proposed = PROPOSED if asked is None else asked.num_speculative_tokens
        if asked is not None:
            self.speculator = Speculator(kv, proposer(asked), self._most_proposed, self._max_rows)
        self._forced: set[Request] = set()  # those whose grammar forces the next token

    def set_forced(self, request: Request, token_ids: list[int]) -> None:
        """Keep the tokens that the request's grammar forces after all that it has."""
        request.forced_tokens = token_ids
        (self._forced.add if token_ids else self._forced.discard)(request)

    def forget(self, request: Request) -> None:
        """Forget a request that has ended."""
        self._forced.discard(request)

    @property
    def possible(self) -> bool:
        """Return whether the next step may have proposals."""
        return self.speculator is not None or self._forces()

    def _forces(self) -> bool:
        """Return whether more is forced for a running request than a step in flight draws."""
        return any(
            request.status is Status.RUNNING
            and len(request.forced_tokens) > request.num_expected_tokens - request.num_tokens
            for request in self._forced
        )

    def wait_pays(self, running: list[Request], leaving: Iterable[Request]) -> bool:
        """Return whether the next step should wait for the one in flight, to have proposals.

        leaving: those that have ended while that step still computes them.
        """
        rows = len(running)
        if most_forced(rows, rows) and self._forces():
            return True
        return self.speculator is not None and self.speculator.wants(running, leaving)

    def add(self, plan: StepPlan, planned: list[Request], budget: int) -> int:
        """Add rows for proposed tokens of decoding requests; return the rest of the budget.

        planned: whose the plan's rows are.
        """
        decoding = [
            request
            for row, request in zip(plan.rows, planned)
            if row.num_tokens == 1 and row.samples == 1 and request.num_output_tokens
        ]
        # A row that forks draws several tokens; the worker has room for as many draws as rows.
        siblings = sum(row.samples - 1 for row in plan.rows if row.samples)
        room = min(budget, self._max_rows - len(plan.rows) - siblings)
        if self._forced:
            num_tokens = sum(row.num_tokens for row in plan.rows)
            most = min(room, most_forced(len(plan.rows), num_tokens))
            turn = plan.step % max(1, len(decoding))  # so that none is always served first
            ordered = decoding[turn:] + decoding[:turn]
            forced = that_fit(self.kv, forced_proposals(ordered, self._most_proposed, most))
            added = self._add_rows(plan, forced)
            room, budget = room - added, budget - added
        if self.speculator is not None:
            chosen = self.speculator.choose(decoding, len(plan.rows), room)
            budget -= self._add_rows(plan, chosen)
        return budget

    def _add_rows(self, plan: StepPlan, chosen: list[tuple[Request, list[int]]]) -> int:
        """Add a row for each proposed token; return how many there are."""
        before = len(plan.rows)
        for request, token_ids in chosen:
            copied = self.kv.grow(request, len(token_ids))
            assert copied is None, "the row before the proposals has copied what others read"
            plan.proposed[request.id] = token_ids
            for start in range(
                request.num_planned_tokens, request.num_planned_tokens + len(token_ids)
            ):
                plan.rows.append(StepRow(request.id, start, 1, 1))
            request.num_planned_tokens += len(token_ids)
            request.num_proposed_tokens = len(token_ids)
            if request.table_sent < len(request.block_table):
                self._tell_worker(plan, request)
        return len(plan.rows) - before
