"""The growth benchmark measures decode steps and nothing else, and its tables are whole."""

from __future__ import annotations

from contextlib import closing

import pytest

from benchmarks import growth
from benchmarks.run_engine import Engine
from engine.config import POCKET_MODEL


@pytest.mark.parametrize("num_requests", [1, 40])
def test_behind_the_last_prompt_all_requests_decode(num_requests, monkeypatch):
    plans = []
    with closing(Engine(POCKET_MODEL, "float32", num_gpu_blocks_override=500)) as engine:
        execute = engine.core.executor.execute

        def watched(plan):
            plans.append([row.num_tokens for row in plan.rows])
            return execute(plan)

        monkeypatch.setattr(engine.core.executor, "execute", watched)
        monkeypatch.setattr(growth, "STEPS", 5)
        assert growth.step_ms(engine, num_requests, 60, 2048) > 0
    whole = [1] * num_requests
    first = plans.index(whole)
    assert plans[first : first + 5] == [whole] * 5  # as many as are timed, none between them
    assert len(plans[first - 1]) == num_requests and max(plans[first - 1]) > 1  # left out


def test_cases_take_turns():
    order = []
    cases = {name: lambda n=name: order.append(n) or 1.0 for name in "ab"}
    assert growth.in_turns(cases, 2) == {"a": [1.0, 1.0], "b": [1.0, 1.0]}
    assert order == ["a", "b", "a", "b"]


def test_every_case_is_in_the_tables():
    result = {
        "cpu": "A processor",
        "threads": 2,
        "dtype": "bfloat16",
        "torch": "2",
        "date": "today",
        "busy_cores_before": 0.5,
        "steps_ms": {"pocket": {"requests": {"1": [1.0], "64": [8.0]}, "context": {"2000": [3.0]}}},
        "pool_us": {"100000": [90.0, 110.0]},
        "record_ms": {"off": [10.0], "full": [15.0]},
        "transport_tokens_per_s": {"W2 in process": [200.0], "W2 HTTP": [150.0]},
        "threads_tokens_per_s": {"pocket": {"W1 1": [80.0], "W1 2": [120.0]}},
    }
    text = growth.markdown(result)
    assert "| W1 | 80.00 (80.00–80.00) | 120 (120–120) |" in text
    assert "| 64 | 8.00 (8.00–8.00) | 8.00 |" in text
    assert "| 100,000 | 100 (90–110) |" in text
    assert "+50.0 %" in text and "| 75 % |" in text and "50 % of a core" in text
