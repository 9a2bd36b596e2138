"""The page of predictions against reality: its verdict counts what the tables show."""

from __future__ import annotations

import pytest

from benchmarks.what_if import Compared, Kept, compare, loads, page, relative, speed
from engine.trace.events import StepFinished
from engine.trace.files import read_all
from tests.trace.test_import_rules import ROOT

ABOUT = {"cpu": "a processor", "clock": "wall clock"}


def test_the_verdict_counts_what_is_off_and_what_nobody_could_know():
    compared = [
        Compared("steps", 100, 109, 100, 0.09, 0.01, 0.04),
        Compared("preemptions", 0, 3, 2, 0.5, 0.01, 0.04),
        Compared("first token, p50, ms", 4.0, 4.5, 5.0, -0.1, 0.05, 0.04),
        Compared("first token, p99, ms", 40.0, 90.0, 50.0, 0.8, 0.4, 0.04),
        Compared("whole answer, p50, ms", 40.0, 90.0, 50.0, 0.8, 0.1, 0.04),
    ]
    text = page([(loads()[0], compared)], 3, ABOUT)
    assert "Counts within 10%: 1 of 2 (0 of 1 beyond, where the machine changed as much);" in text
    assert "times within 25%: 1 of 3 (1 of 2 beyond, where the machine changed as much)." in text
    assert "| steps | 100 | 109 | 100 | +9% | ± 1% |" in text
    assert "| whole answer, p50, ms | 40.00 | 90.00 | 50.00 | **+80%** | ± 10% |" in text


def test_the_machines_speed_is_told_by_steps_of_the_same_shape():
    record = read_all(ROOT / "docs" / "records" / "seats.jsonl")
    slower = read_all(ROOT / "docs" / "records" / "seats.jsonl")
    for event in slower:
        event.ts_ns *= 2
        if isinstance(event, StepFinished):
            event.total_us *= 2
    assert speed(record, record) == 1 and speed(record, slower) == pytest.approx(2)


def test_what_should_be_nothing_is_wholly_off():
    assert relative(3, 0) == 1 and relative(0, 0) == 0 and relative(9, 10) < 0


def test_kept_records_are_judged_again_as_they_were(tmp_path):
    pair = tuple(read_all(ROOT / "docs" / "records" / f"{n}.jsonl") for n in ("seats", "crowd"))
    kept = Kept(ABOUT, [[pair] * 2 for _load in loads()])
    kept.write(tmp_path)
    again = Kept.read(tmp_path)
    assert again.about == ABOUT and [len(pairs) for pairs in again.pairs] == [2] * len(loads())
    assert compare(loads()[0], again.pairs[0]) == compare(loads()[0], [pair])
