"""Tell the worker of each row once, with the plan that needs it first, and what it may forget."""

from __future__ import annotations

from engine.core.messages import NewBlocks, NewRow, StepPlan
from engine.core.request import Request


class WorkerRows:
    """Write into plans what the worker doesn't know yet: new rows, new blocks, rows to drop."""

    def __init__(self) -> None:
        self.dropped: list[str] = []  # the next plan carries these

    def tell(self, plan: StepPlan, request: Request) -> None:
        """Add the blocks that the worker doesn't know yet to the plan, and for a new row everything
        else."""
        if request.table_sent < 0:
            plan.new[request.id] = NewRow(
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.core.params,
                seed=request.seed,
                stop_token_ids=list(request.end_ids),
                grammar=request.grammar,
                trace_full=request.core.trace_full,
            )
            request.table_sent = 0
        told = plan.tables.get(request.id)
        sent = request.table_sent if told is None else told.start
        plan.tables[request.id] = NewBlocks(sent, request.block_table[sent:])
        request.table_sent = len(request.block_table)

    def drop(self, request: Request) -> None:
        """Let the worker forget a row, if it has one."""
        if request.table_sent >= 0:
            self.dropped.append(request.id)
            request.forget_worker_row()

    def hand_over(self, plan: StepPlan) -> None:
        """Put the rows to drop into the plan."""
        plan.dropped, self.dropped = self.dropped, []

    def take_back(self, plan: StepPlan) -> None:
        """Keep what a plan that was broken off should have dropped for the next one."""
        self.dropped = plan.dropped + self.dropped  # the worker ignores what it has dropped
