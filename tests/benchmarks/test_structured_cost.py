"""What `benchmarks.structured` measures: three ways that decode the same, and its table."""

from __future__ import annotations

import math

import pytest

from benchmarks.structured import AHEAD, WARM_UP, WITH, WITHOUT, Case, compare, markdown
from engine.config import POCKET_MODEL
from tests.support.proposing import NothingCosts


@pytest.mark.slow
def test_three_ways_decode_as_many_tokens():
    options = {"cpu_threads": 1}
    plain = Case("pocket", POCKET_MODEL, 60, **options)
    ahead = Case("pocket", POCKET_MODEL, 60, **options, speculative_config={"method": "ngram"})
    ahead.engine.core.scheduler.speculator.costs = NothingCosts()  # whatever this machine does now
    runs = {WITHOUT: plain.run(False), WITH: plain.run(True), AHEAD: ahead.run(True)}
    assert runs[WITHOUT].tokens == runs[WITH].tokens == 60 - WARM_UP
    steps = {way: len(run.steps) + WARM_UP for way, run in runs.items()}
    assert steps[WITHOUT] == steps[WITH] == 60 and steps[AHEAD] < 55
    found = {**plain.forbidden(), **compare(plain, ahead, 1)}
    plain.engine.close()
    ahead.engine.close()
    assert 1 <= found["allowed"] < 2048 and 0 < found["only_one"] < 1 > found["removed"] > 0
    assert all(math.isfinite(found[f"{way}_cpu_ratio"]) for way in (WITH, AHEAD))
    given = {"shape": "pocket", "requests": 1, "threads": 1, "output": 60, "busy": 0.25}
    rows = [line for line in markdown([{**given, **found}]).splitlines() if line.startswith("| p")]
    assert len(rows) == 6 and rows[0].startswith("| pocket | 1 | 1 | 0.2 | without | ")
