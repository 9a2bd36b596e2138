"""The benchmarks' engine leaves the collector as little to do as the server's does."""

from __future__ import annotations

import gc
from contextlib import closing

from benchmarks.run_engine import Engine
from engine.config import POCKET_MODEL


def test_what_is_loaded_is_frozen_until_the_engine_is_closed():
    gc.unfreeze()
    with closing(Engine(POCKET_MODEL, "float32", num_gpu_blocks_override=50)):
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0
