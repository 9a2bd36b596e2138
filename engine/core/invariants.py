"""Hold what the scheduler's queues, tables, pools and counts must agree in. For tests."""

from __future__ import annotations

from engine.core.request import Status
from engine.core.scheduler import Scheduler


def check_scheduler(scheduler: Scheduler) -> None:
    """Raise AssertionError unless queues, tables, pools and counts agree with each other."""
    waiting = scheduler.waiting.in_order()
    everyone = [*scheduler.running, *waiting, *scheduler.leaving]
    scheduler.kv.pool.check(r.block_table for r in everyone)
    scheduler.kv.host_pool.check(r.host_blocks for r in everyone)
    assert scheduler.record.complete, "something happened to blocks that the record doesn't have"
    assert len(waiting) == len(scheduler.waiting), "miscounted waiting requests"
    in_order = sorted(scheduler.running, key=lambda request: request.rank)
    assert scheduler.running == in_order, "running requests out of order"
    seated = [*scheduler.running, *scheduler.leaving]
    assert scheduler.seats_taken == sum(r.seats for r in seated) <= scheduler.max_num_seqs, "seats"
    for r in scheduler.running:
        assert r.status is Status.RUNNING and not r.host_blocks
        assert r.num_computed_tokens < r.num_tokens, f"{r.id}: rule 1"
        assert r.num_computed_tokens <= r.num_planned_tokens, r.id
        known = r.num_expected_tokens + r.num_proposed_tokens
        assert r.num_planned_tokens <= known, f"{r.id}: {known} tokens are known or proposed"
        assert r.tokens_in_flight or not r.num_proposed_tokens, f"{r.id}: proposals, but where?"
        assert r.num_expected_tokens - r.num_tokens in (0, 1), f"{r.id}: drawn, but where?"
        blocks = scheduler.kv.blocks_for(r.num_planned_tokens)
        assert len(r.block_table) == blocks, f"{r.id}: {len(r.block_table)} blocks, not {blocks}"
    for r in waiting:
        assert r.status is Status.WAITING and not r.block_table and not r.tokens_in_flight
        assert bool(r.host_blocks) == (r.num_computed_tokens > 0), f"{r.id}: computed, but where?"
    for r in scheduler.leaving:
        assert r.finished and r.tokens_in_flight, f"{r.id} should have left"
