"""The benchmarks' engine runs under the conditions that the server's has."""

from __future__ import annotations

import gc
from contextlib import closing

from benchmarks.run_engine import Engine
from benchmarks.workloads import Workload
from engine.config import POCKET_MODEL
from engine.core.garbage_collection import YOUNG


def test_the_collector_is_quiet_while_it_runs(monkeypatch):
    before, seen = gc.get_threshold(), []
    with closing(Engine(POCKET_MODEL, "float32", num_gpu_blocks_override=50)) as engine:
        monkeypatch.setattr(engine, "_run", lambda *_: seen.append(gc.get_threshold()[0]))
        engine.run(Workload("none", "", []))
    assert seen == [YOUNG] and gc.get_threshold() == before
