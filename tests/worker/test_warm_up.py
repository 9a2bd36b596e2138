"""What the worker computes before the first request."""

from __future__ import annotations

import pytest

from engine.core.messages import StepOutput, StepPlan
from engine.worker.warm_up import LONG_ENOUGH_S, SHORT, warm_up


class Slow:
    """Takes `us_per_token`; keeps what it was asked to compute."""

    def __init__(self, us_per_token: float):
        self.us_per_token = us_per_token
        self.rows: list[tuple[int, int]] = []  # (start, tokens)
        self.living: set[str] = set()

    def __call__(self, plan: StepPlan) -> StepOutput:
        self.living -= set(plan.dropped)
        for row in plan.rows:
            assert (row.request_id in plan.new) != (row.request_id in self.living)
            self.living.add(row.request_id)
            self.rows.append((row.start, row.num_tokens))
            if row.request_id in plan.new:
                self.blocks = plan.tables[row.request_id].blocks
        tokens = sum(row.num_tokens for row in plan.rows)
        return StepOutput(step=0, tokens=[], forward_us=tokens * self.us_per_token)


FIRST = [(0, SHORT - 1), (SHORT - 1, 1)]


@pytest.mark.parametrize(
    ("us_per_token", "longest", "long_prompts", "then"),
    [
        (1.0, 100, True, [64, 100]),
        (1.0, 1024, False, []),
        (LONG_ENOUGH_S * 1e6 / 256, 4096, True, [64, 128, 256]),  # enough
        (LONG_ENOUGH_S * 1e6, 4096, True, [64]),  # one is always computed
        (1.0, SHORT, True, []),
    ],
)
def test_prompts_double_until_one_takes_long(us_per_token, longest, long_prompts, then):
    execute = Slow(us_per_token)
    warm_up(execute, longest, 16, long_prompts)
    assert execute.rows == FIRST + [(0, length) for length in then]
    assert execute.blocks == list(range(-(-longest // 16)))
    assert not execute.living


def test_a_cache_for_a_single_token():
    execute = Slow(1.0)
    warm_up(execute, 1, 16, True)
    assert execute.rows == []
