"""The costs of recomputing and swapping are learned from the times of steps."""

from __future__ import annotations

import pytest

from engine.core.preemption import PreemptionCosts


def test_nothing_measured_yet():
    costs = PreemptionCosts(swap_us_per_block=3.0)
    assert costs.recompute_ms(1000) == 0.0
    assert costs.swap_ms(10) == pytest.approx(0.06)


def test_bulk_steps_say_what_a_token_costs():
    costs = PreemptionCosts(swap_us_per_block=1.0)
    costs.observe_step(1, 500.0)  # a decode step: dear for one token
    assert costs.recompute_ms(100) == pytest.approx(50.0)
    costs.observe_step(2, 300.0)  # a cheaper small step is a better bound
    assert costs.recompute_ms(100) == pytest.approx(15.0)
    for _ in range(40):
        costs.observe_step(1000, 10_000.0)
    assert costs.recompute_ms(100) == pytest.approx(1.0, rel=0.02)
    costs.observe_step(1, 500.0)  # dearer small steps don't count
    assert costs.recompute_ms(100) == pytest.approx(1.0, rel=0.02)
    costs.observe_step(0, 100.0)
