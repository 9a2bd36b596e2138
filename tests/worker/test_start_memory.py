"""Memory that runs out at start, and memory that is set aside: lines that a person can act on."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from engine.config import ConfigError
from engine.kernels.batch import LayerKV
from engine.worker import model_runner
from engine.worker.graphs.cuda_graphs import ladder, sample_memory
from engine.worker.graphs.prompt_graphs import prompt_ladder
from engine.worker.memory import start_memory
from engine.worker.memory.kv_sizing import GIB, KVMemory
from engine.worker.memory.start_memory import memory_for
from engine.worker.model_runner import ModelRunner
from engine.worker.platforms.platform import Trial
from tests.worker.test_cuda_graphs import runner_on

CPU = torch.device("cpu")


def no_memory(*arguments, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has …")


@pytest.fixture
def runner(monkeypatch) -> ModelRunner:
    """On a "CUDA" device of which nothing is touched: every part of loading is replaced."""
    pytest.importorskip("triton")
    made = runner_on("cuda", monkeypatch, max_num_seqs=8)
    model = SimpleNamespace(
        implementation="native", kv_spec=[LayerKV(2, 64)], max_model_len=64, vocab_size=100
    )
    monkeypatch.setattr(model_runner, "load_model", lambda *arguments: model)
    monkeypatch.setattr(made, "_model_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB // 2, 16 * GIB))
    for name in ("_make_state", "_warm_up", "_record_size"):
        monkeypatch.setattr(made, name, lambda *arguments: None)
    monkeypatch.setattr(made, "graph_shape", lambda: None)
    monkeypatch.setattr(made.platform, "kv_memory", lambda *arguments: KVMemory(GIB, "", GIB))
    return made


@pytest.mark.parametrize(
    ("part", "doing", "lower"),
    [
        ("load_model", "loading the weights", "smaller model"),
        ("kv_memory", "computing the largest step", "--max-num-batched-tokens"),
        ("_make_state", "making the KV cache", "--gpu-memory-utilization"),
        ("_warm_up", "computing for the first time", "--gpu-memory-utilization"),
        ("graphs", "capturing CUDA graphs", "--enforce-eager"),
    ],
)
def test_one_line_says_what_to_lower(part, doing, lower, runner, monkeypatch):
    owners = {"load_model": model_runner, "kv_memory": runner.platform, "graphs": runner.platform}
    monkeypatch.setattr(owners.get(part, runner), part, no_memory)
    with pytest.raises(ConfigError) as raised:
        runner.load()
    line = str(raised.value)
    assert line.startswith(f"out of memory while {doing} (512.0 MiB of the GPU's 16.00 GiB are")
    assert lower in line
    assert "\n" not in line


def test_the_sample_of_graphs_is_named_even_inside_the_profile(runner, monkeypatch):
    platform, shape = runner.platform, SimpleNamespace(max_rows=8)
    monkeypatch.setattr(platform, "graphs", no_memory)
    monkeypatch.setattr(platform, "kv_memory", lambda *arguments: platform._graph_bytes(shape))
    with pytest.raises(ConfigError, match="while capturing CUDA graphs"):
        runner.load()


def test_the_drivers_refusal_counts_and_other_errors_pass():
    with (
        pytest.raises(ConfigError, match="making the KV cache: lower"),
        memory_for(start_memory.KV_CACHE, CPU),
    ):
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be …")
    with pytest.raises(RuntimeError, match="illegal"), memory_for(start_memory.KV_CACHE, CPU):
        raise RuntimeError("CUDA error: an illegal memory access")
    with pytest.raises(TimeoutError), memory_for(start_memory.LOAD, CPU):
        raise TimeoutError


def test_memory_that_torch_really_refuses():
    """A tensor too large for any machine: whatever class the error has, it becomes one line."""
    with (
        pytest.raises(ConfigError, match="out of memory while"),
        memory_for(start_memory.KV_CACHE, CPU),
    ):
        torch.empty(2**55, dtype=torch.uint8)


# ------------------------------------------------------------------------- what graphs will take


class Graphs:
    """A card on which a capture takes its outputs and 1,000 bytes of the driver's."""

    ROW = 50

    def __init__(self, slack: int = 0, budget: int = 0) -> None:
        self.free, self.slack, self.graphs = 10**9, slack, {}
        self.prompts = Prompts(self) if budget else None

    def make(self, sizes):
        self.free -= 10**6 + self.slack
        for size in sizes:
            self.add(size)
        return self

    def add(self, size):
        outputs = self.ROW * size
        found = min(self.slack, outputs)  # lies in memory that the first one left
        self.slack -= found
        self.free -= outputs - found + 1000
        tensors = torch.empty(size, 20, dtype=torch.uint8), torch.empty(size, 30, dtype=torch.uint8)
        self.graphs[size] = SimpleNamespace(outputs=tensors)


class Prompts:
    """The graphs with prompts on such a card: the first one takes room for what it makes."""

    TOKEN = 20

    def __init__(self, card: Graphs) -> None:
        self.card, self.sizes, self.graphs = card, prompt_ladder(700), {}

    def add(self, size):
        self.card.free -= self.TOKEN * size + 1000 + (0 if self.graphs else 10**7)
        outputs = (torch.empty(size, self.TOKEN, dtype=torch.uint8),)
        self.graphs[size] = SimpleNamespace(outputs=outputs)


def test_graphs_with_prompts_are_counted_too():
    sampled, card = Graphs(budget=700), Graphs(budget=700)
    card.make(list(reversed(ladder(8))))
    for size in reversed(card.prompts.sizes):
        card.prompts.add(size)
    found, why = sample_memory(sampled.make, 8, lambda: sampled.free)
    assert found == 10**9 - card.free
    assert why.startswith(f"{len(ladder(8)) + len(card.prompts.sizes)} CUDA graphs (")
    assert len(sampled.prompts.graphs) == 1


@pytest.mark.parametrize("rows", [1, 2, 8, 256])
def test_a_sample_tells_what_all_graphs_take(rows):
    sampled, card = Graphs(), Graphs()
    card.make(list(reversed(ladder(rows))))
    found, why = sample_memory(sampled.make, rows, lambda: sampled.free)
    assert found == 10**9 - card.free
    assert why.startswith(f"{len(ladder(rows))} CUDA graphs (")
    assert len(sampled.graphs) == min(rows, 2)


def test_outputs_that_found_room_are_counted_all_the_same():
    sampled, card = Graphs(slack=10**5), Graphs(slack=10**5)
    card.make(list(reversed(ladder(64))))
    found, _ = sample_memory(sampled.make, 64, lambda: sampled.free)
    assert 0 <= found - (10**9 - card.free) <= 10**5  # never too little


@pytest.mark.parametrize("shapes", ["", "model", "model draft"])
def test_the_arithmetic_line_says_what_graphs_take(shapes, monkeypatch):
    pytest.importorskip("triton")
    platform = runner_on("cuda", monkeypatch, max_num_seqs=8).platform
    took = {None: (0, ""), "model": (2 * GIB, "4 CUDA graphs (…)"), "draft": (GIB // 2, "2 of (…)")}
    monkeypatch.setattr(platform, "_peak_bytes", lambda compute: GIB)
    monkeypatch.setattr(platform, "_graph_bytes", took.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    model, draft = (name if name in shapes else None for name in ("model", "draft"))
    trial = Trial(lambda: None, draw_bytes=0, graph_shape=model, draft_shape=draft)
    budget, why, free = platform.kv_memory(0.9, lambda: nullcontext(trial))
    beside = GIB + took[model][0] + took[draft][0]
    assert budget == int(16 * GIB * 0.9) - 6 * GIB - beside
    assert free == 10 * GIB - beside
    assert why.startswith("16.00 GiB of the device × 0.90 − 6.00 GiB in use − 1.00 GiB for acti")
    of_model = " − 2.00 GiB for 4 CUDA graphs (…)" if model else ""
    of_draft = " − 512.0 MiB for the draft model's 2 of (…)" if draft else ""
    assert why.endswith(f"(measured){of_model}{of_draft}")
