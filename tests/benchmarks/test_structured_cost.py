"""What `benchmarks.structured` measures: two ways that decode as many tokens, and its table."""

from __future__ import annotations

import math

import pytest

from benchmarks.structured import Case, Measured, compare, described, markdown, waits
from engine.config import POCKET_MODEL
from engine.trace.events import StepFinished


def test_tokens_that_come_together_wait_for_none():
    """Two sequences, one of which gets three tokens in the second step and then has ended."""
    assert waits([(1000, [1, 1]), (5000, [1, 3]), (7000, [1])]) == [4.0, 4.0, 0.0, 0.0, 2.0]


@pytest.mark.slow
def test_both_ways_decode_as_many_tokens():
    case = Case("pocket", POCKET_MODEL, 60, cpu_threads=1)
    without, held = case.run(False), case.run(True)
    assert without.tokens == len(without.steps) == 40 and len(held.steps) < 0.8 * held.tokens
    assert without.cpu_s > 0 < held.cpu_s
    assert len(without.waits_us) == without.tokens and len(held.waits_us) == held.tokens
    assert held.waits_us.count(0.0) == held.tokens - len(held.steps)
    found = {**case.forbidden(), **compare(case, 1)}
    case.engine.close()
    assert 1 <= found["allowed"] < 2048 and 0 < found["only_one"] < 1 > found["removed"] > 0
    assert all(
        math.isfinite(found[name]) for name in ("ratio", "cpu_ratio", "p99_ratio", "p99_wait_ratio")
    )
    given = {"shape": "pocket", "requests": 1, "threads": 1, "output": 60, "busy": 0.25}
    rows = [line for line in markdown([{**given, **found}]).splitlines() if line.startswith("| p")]
    assert len(rows) == 4 and rows[0].startswith("| pocket | 1 | 1 | 0.2 | without | ")


def test_a_slow_moment_of_the_machine_is_not_a_slow_step_of_each_request():
    def turn(*slow: float) -> Measured:
        times = [1000.0] * (120 - len(slow)) + list(slow)
        steps = [StepFinished(num_sampled=1, total_us=time) for time in times]
        return Measured(steps, 1.0, times)

    taken = described([turn(), turn(*[8000.0] * 40), turn()])
    assert (taken["p99_us"], taken["p99_wait_us"]) == (1000.0, 1000.0)
    often = described([turn(5000.0, 5000.0), turn(5000.0, 5000.0), turn()])
    assert (often["p99_us"], often["p99_wait_us"]) == (5000.0, 5000.0)
