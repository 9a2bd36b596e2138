"""The table of what HTTP leaves of the engine's speed has every case, and real runs fill it."""

from __future__ import annotations

import pytest

from benchmarks import transport
from engine.config import POCKET_MODEL


def test_the_table():
    result = {
        "cpu": "A processor",
        "threads": 2,
        "dtype": "bfloat16",
        "torch": "2",
        "date": "today",
        "tokens_per_s": {
            "pocket": {"W1 in process": [50.0, 200.0, 210.0], "W1 HTTP": [150.0, 149.0, 151.0]},
            "smollm2-135m": {"W2 in process": [10.0], "W2 HTTP": [9.5]},
        },
    }
    text = transport.markdown(result)
    assert "| W1 | 200 (50–210) | 150 (149–151) | 75 % |" in text
    assert "| W2 | 10.00 (10.00–10.00) | 9.50 (9.50–9.50) | 95 % |" in text


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(180)
def test_one_round_of_both_ways():
    seen = transport.by_transport(POCKET_MODEL, "bfloat16", 2048, ["W1"], 1)
    assert seen.keys() == {"W1 in process", "W1 HTTP"}
    assert all(len(speeds) == 1 and speeds[0] > 0 for speeds in seen.values())
