"""The step that decode attention is measured on, and that every measurement replays a graph where
there is a GPU; the kernels themselves are in tests/kernels/triton."""

from __future__ import annotations

import types

import pytest
import torch

from benchmarks.gpu import attention_speed, graph_time
from benchmarks.gpu.limits import Limits
from benchmarks.gpu.paged_step import PAGE, decode_step
from engine.kernels import torch_attention
from engine.kernels.batch import AttentionSpec
from engine.kernels.fp8_cache import LARGEST

CPU = torch.device("cpu")


def test_each_row_of_the_step_holds_its_own_pages():
    contexts = torch.tensor([33, 1, 16], dtype=torch.int32)
    cache, batch = decode_step(contexts, 2, 64, torch.float16, CPU)
    assert cache.k.shape == cache.v.shape == (9, PAGE, 2, 64) and cache.k.dtype == torch.float16
    assert batch.block_tables.flatten().sort().values.tolist() == list(range(9))
    assert batch.block_tables.shape == (3, 3) and batch.block_tables.dtype == torch.int32
    assert batch.context_lens.tolist() == batch.context_lens_list == [33, 1, 16]
    assert batch.positions.tolist() == [32, 0, 15] and batch.max_context_len == 33
    assert batch.num_decode_rows == batch.num_rows == 3
    q = torch.randn(3, 4, 64).half()
    out = torch_attention.paged_attention(q, cache, batch, AttentionSpec(4, 2, 64, 0.125))
    assert out.shape == q.shape and out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize("stored", [None, *LARGEST])
def test_bytes_over_time_against_bandwidth(stored, monkeypatch):
    seen = []

    def timed(call, device, tries):
        call()
        return 2e-6

    def paged_attention(q, cache, batch, spec):
        seen.append((q.dtype, cache.k.dtype, cache.v.dtype, batch.context_lens_list))

    monkeypatch.setattr(attention_speed, "graph_seconds", timed)
    kernels = types.SimpleNamespace(paged_attention=paged_attention)
    found = attention_speed.decode_attention(kernels, CPU, Limits(1000.0, 1.0), 2, 40, stored)
    held = stored or torch.float16
    assert seen == [(torch.float16, held, held, [40, 40])]
    moved = 2 * 2 * 40 * 8 * 128 * held.itemsize
    assert found["us"] == pytest.approx(2.0)
    assert found["gb_s"] == pytest.approx(moved / 2e-6 / 1e9)
    assert found["share_of_limit"] == pytest.approx(found["gb_s"] / 1000)


class FakeGraph:
    """Replace `torch.cuda`'s graphs, and list what is called."""

    def __init__(self):
        self.told = []

    def __enter__(self):
        self.told.append("begin")

    def __exit__(self, *_):
        self.told.append("end")

    def replay(self):
        self.told.append("replay")


def test_on_a_gpu_a_graph_is_replayed(monkeypatch):
    graph = FakeGraph()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda which: which)

    def seconds(call, device, tries):
        call()
        graph.told.append(tries)
        return 8.0

    monkeypatch.setattr(graph_time, "seconds", seconds)
    taken = graph_time.graph_seconds(lambda: graph.told.append("call"), torch.device("cuda"), 7)
    captured = ["begin", *["call"] * graph_time.CALLS, "end"]
    assert graph.told == ["call", *captured, "replay", 7]
    assert taken == 8.0 / graph_time.CALLS


def test_on_a_cpu_the_plain_call_is_timed():
    calls = []
    assert graph_time.graph_seconds(lambda: calls.append(1), CPU, 3) >= 0
    assert len(calls) == 1 + 3  # one to warm up
