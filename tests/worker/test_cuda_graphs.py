"""The ladder of graph sizes. What needs no device of the rest is tested on Triton's interpreter,
in tests/kernels/triton/interpreted_engine.py; capture itself, by `make gpu`."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from engine.config import EngineConfig
from engine.kernels import cpu
from engine.trace.recorder import Recorder
from engine.worker import host
from engine.worker.graphs.cuda_graphs import ladder
from engine.worker.graphs.prompt_graphs import MOST, prompt_ladder
from engine.worker.model_runner import ModelRunner


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 8, 63, 64, 100, 256, 257, 1000])
def test_a_ladder_ends_at_the_seats_and_wastes_little(max_rows):
    sizes = ladder(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        size = next(size for size in sizes if size >= rows)
        assert size - rows < (8 if rows < 64 else 16 if rows < 256 else 64)


@pytest.mark.parametrize("budget", [1, 16, 17, 100, 256, 300, 512, 1000, 2048, 4096, 8192, 10**5])
def test_a_ladder_of_steps_with_prompts_holds_the_budget_and_wastes_little(budget):
    sizes = prompt_ladder(budget)
    assert sizes == sorted(set(sizes))
    assert all(size % 16 == 0 for size in sizes)
    assert sizes[-1] - 16 < min(budget, MOST) <= sizes[-1]
    for size, more in pairwise(sizes):
        assert more <= 2 * size if size < 256 else more <= 1.5 * size


def runner_on(device, monkeypatch, **options) -> ModelRunner:
    monkeypatch.setattr(host, "pick_device", lambda wanted: torch.device(device))
    return ModelRunner(EngineConfig(**options), Recorder("off"))


@pytest.mark.parametrize(("asked", "cpu", "cuda"), [(None, False, True), (True,) * 3, (False,) * 3])
def test_the_overlapped_loop_is_the_default_on_cuda(asked, cpu, cuda, monkeypatch):
    for device, expected in (("cpu", cpu), ("cuda", cuda)):
        assert runner_on(device, monkeypatch, async_scheduling=asked).config.async_scheduling is (
            expected
        )


def test_graphs_are_for_our_own_kernels(monkeypatch):
    pytest.importorskip("triton")
    native = cpu.available()
    ours, theirs = (SimpleNamespace(implementation=x) for x in ("native", "transformers adapter"))
    for device, model, eager, expected in (
        ("cuda", ours, False, True),
        ("cuda", ours, True, False),
        ("cuda", theirs, False, False),
        ("cpu", ours, False, native),
        ("cpu", ours, True, False),
        ("cpu", theirs, False, False),
    ):
        runner = runner_on(device, monkeypatch, enforce_eager=eager)
        runner.model, runner.kv_dtype = model, torch.bfloat16
        assert runner._graphs_wanted() is expected
        runner.kv_dtype = torch.float8_e5m2
        assert runner._graphs_wanted() is (expected and device == "cuda")
