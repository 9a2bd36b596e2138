"""Check step 9: which preempted sequences were swapped."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from course.checks.scheduling import prompt
from course.exercise import Wrong
from engine.core.preemption import PreemptionCosts
from engine.core.scheduler import Scheduler
from engine.trace.events import RequestPreempted
from tests.support.core_harness import Harness

LONG = 8  # tokens


def preempted_under(costs: type[PreemptionCosts]) -> list[RequestPreempted]:
    """Return the preemptions of eight requests in a pool that is too small for them."""
    harness = Harness(
        num_blocks=12,
        num_host_blocks=24,
        swap_us_per_block=50.0,
        options={"preemption_mode": "auto", "max_num_batched_tokens": 24},
        scheduler=partial(Scheduler, costs=costs),
    )
    for i in range(8):
        harness.add(f"r{i}", prompt(3 + 4 * (i % 2), start=i), max_tokens=16)
    harness.run()
    harness.expect_solo_answers()
    preempted = harness.recorded(RequestPreempted)
    harness.close()
    return [event for event in preempted if event.num_computed_tokens]


def rule(module: ModuleType) -> None:
    """Swap sequences of at least 8 tokens, recompute shorter ones."""
    preempted = preempted_under(module.Costs)
    sizes = [event.num_computed_tokens for event in preempted]
    assert min(sizes) < LONG <= max(sizes), "this check would check nothing"
    for event in preempted:
        wanted = "swap" if event.num_computed_tokens >= LONG else "recompute"
        if event.mode != wanted:
            raise Wrong(
                f"{event.request_id} had {event.num_computed_tokens} tokens in the cache and was"
                f" preempted by {event.mode}; the rule asks for {wanted}"
            )


PARTS = (rule,)
