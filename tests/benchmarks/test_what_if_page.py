"""The page of predictions against reality: its verdict counts what the tables show."""

from __future__ import annotations

from benchmarks.what_if import Compared, loads, page, relative


def test_the_verdict_counts_what_is_off_and_what_nobody_could_know():
    compared = [
        Compared("steps", 100, 109, 100, 0.09, 0.01),
        Compared("preemptions", 0, 3, 2, 0.5, 0.01),
        Compared("first token, p50, ms", 4.0, 4.5, 5.0, -0.1, 0.05),
        Compared("first token, p99, ms", 40.0, 90.0, 50.0, 0.8, 0.4),
        Compared("whole answer, p50, ms", 40.0, 90.0, 50.0, 0.8, 0.1),
    ]
    text = page([(loads()[0], compared)], 3, "wall clock")
    assert "Counts within 10%: 1 of 2 (of the 1 others, 0 differ as much when run again);" in text
    assert "times within 25%: 1 of 3 (of the 2 others, 1 differ as much when run again)." in text
    assert "| steps | 100 | 109 | 100 | +9% | ± 1% |" in text
    assert "| whole answer, p50, ms | 40.00 | 90.00 | 50.00 | **+80%** | ± 10% |" in text


def test_what_should_be_nothing_is_wholly_off():
    assert relative(3, 0) == 1 and relative(0, 0) == 0 and relative(9, 10) < 0
