"""The cost of a streamed token is measured by intervals of the stream, and told in a table."""

from __future__ import annotations

import pytest

from benchmarks import token_cost


def test_the_table():
    def row(interval, us):
        runs = [{"us": one, "tokens_per_s": 5000.0, "tokens_a_read": 1.0} for one in us]
        return {"streams": 64, "route": "chat", "stream_interval": interval, "runs": runs}

    text = token_cost.markdown([row(1, [20.0, 24.0, 22.0]), row(4, [7.0])])
    assert "| chat | 64 | 1 | 5,000 | 1.00 | 20.0 | 22.0 |" in text
    assert "| chat | 64 | 4 | 5,000 | 1.00 | 7.0 | 7.0 |" in text


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(180)
def test_both_intervals_are_measured(monkeypatch):
    monkeypatch.setattr(token_cost, "MEASURED_S", 0.5)
    rows = token_cost.measure(1, [1])
    assert [(row["stream_interval"], row["route"]) for row in rows] == [
        (interval, route) for interval in (1, 4) for route in ("chat", "completions")
    ]
    by_interval = {1: [], 4: []}
    for row in rows:
        (run,) = row["runs"]
        assert run["us"] > 0 and run["tokens_per_s"] > 0
        by_interval[row["stream_interval"]].append(run["tokens_a_read"])
    assert max(by_interval[1]) < min(by_interval[4])
