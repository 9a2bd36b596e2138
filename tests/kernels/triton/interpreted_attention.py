"""Paged attention in Triton's interpreter against the torch reference in float64. Outputs and the
pages' unused places are poisoned with NaN: what should not be read or is not written shows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gpu.paged_step import captured, finite, make_step
from engine.kernels import torch_attention
from engine.kernels.batch import AttentionSpec, LayerCache, QKNorms
from engine.kernels.launch import recording
from engine.kernels.triton import paged_attention as attention
from engine.kernels.triton import rotary
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.support.cases import cases, mostly, pairs

TOLERANCE = {torch.float32: 2e-6, torch.float16: 4e-3}
FEW = settings(max_examples=cases(6), deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fill memory that a kernel gets with NaN until it is written."""
    empty = torch.empty

    def poisoned(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(-1)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))


def compare(rows, heads, kv_heads, head_dim, page, dtype, seed=0, **options):
    cache, batch = make_step(rows, kv_heads, head_dim, page, dtype, seed)
    spec = AttentionSpec(heads, kv_heads, head_dim, head_dim**-0.5, **options)
    q = torch.randn(len(batch.positions), heads, head_dim).to(dtype)
    found = attention.paged_attention(q, cache, batch, spec)
    clean = finite(cache)
    exact = LayerCache(clean.k.double(), clean.v.double())
    expected = torch_attention.paged_attention(q.double(), exact, batch, spec)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE[dtype])
    more_tokens, more_rows = seed % 7 + len(rows), seed % 3
    padded = torch.cat((q, torch.randn(more_tokens, heads, head_dim).to(dtype)))
    again = attention.paged_attention(padded, cache, captured(batch, more_tokens, more_rows), spec)
    torch.testing.assert_close(
        again[: len(q)].double(), expected, rtol=0, atol=TOLERANCE[dtype], msg="captured"
    )


# (kv heads, group): GQA 1 to 8, one of them odd
HEADS = st.sampled_from([(2, 1), (1, 2), (2, 3), (1, 5), (1, 8)])
ROW = st.tuples(st.integers(0, 70), st.integers(2, 40))


@st.composite
def steps(draw):
    old = draw(st.lists(st.integers(0, 300), max_size=3))
    chunks = draw(st.lists(ROW, max_size=2, min_size=0 if old else 1))
    return [(n, 1) for n in old] + chunks


@given(
    steps(),
    HEADS,
    st.sampled_from([64, 80, 96, 128, 256]),
    st.sampled_from([1, 4, 16, 128]),
    st.sampled_from([torch.float32, torch.float16]),
    st.integers(0, 1000),
)
@FEW
def test_any_step(rows, heads, head_dim, page, dtype, seed):
    kv_heads, group = heads
    compare(rows, kv_heads * group, kv_heads, head_dim, page, dtype, seed)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    pairs(
        ["window", "window of one", "cap", "sinks", "all"], [torch.float32, torch.float16], every=2
    ),
)
def test_variants_of_attention(kind, dtype):
    options = {
        "window": {"sliding_window": 20},
        "window of one": {"sliding_window": 1},
        "cap": {"soft_cap": 1.5},
        "sinks": {"sinks": torch.tensor([0.5, -3.0, 4.0])},
        "all": {"sliding_window": 20, "soft_cap": 1.5, "sinks": torch.tensor([9.0, 0.0, -9.0])},
    }[kind]
    compare([(100, 1), (0, 1), (30, 25)], 3, 1, 64, 16, dtype, **options)


@pytest.mark.parametrize("context", mostly([510, 2500], 2500))
def test_long_contexts_are_split_and_merged(context, monkeypatch):
    splits = []
    choose = attention.splits_for
    monkeypatch.setattr(
        attention, "splits_for", lambda *facts: splits.append(choose(*facts)) or splits[-1]
    )
    rows = [(context, 1), (3, 1)]  # the short one leaves most of its segments empty
    compare(rows, 4, 1, 64, 16, torch.float32, sinks=torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert splits[0] == (1 if context < 512 else 8)
    assert splits[1] > 1  # a captured step decides for the longest that may come
    compare([(context, 1)], 2, 1, 64, 16, torch.float16, sliding_window=1500)


def test_a_row_that_only_pads_a_graph_is_zero_and_reads_nothing():
    for context in (5, 1100):  # without and with segments
        cache, batch = make_step([(context, 1), (0, 1)], 1, 64, 16, torch.float32)
        batch.context_lens[1] = 0
        spec = AttentionSpec(2, 1, 64, 0.125)
        found = attention.paged_attention(torch.randn(2, 2, 64), cache, batch, spec)
        assert found.isfinite().all()
        assert (found[1] == 0).all()


def test_tiles_of_more_heads_than_a_tensor_core_has_rows():
    compare([(20, 1), (0, 9)], 24, 1, 64, 16, torch.float32)


SDPA = [
    # rows, options, and who computes the prompts: from 20 tokens on torch's SDPA
    ([(9, 1), (0, 20), (0, 30)], {}, ["triton", "torch", "torch"]),
    ([(0, 20), (0, 3)], {}, ["triton"]),  # many short ones would be many launches
    ([(0, 21)], {"sliding_window": 21}, ["torch"]),
    ([(0, 19)], {}, ["triton"]),
    ([(0, 20), (5, 3)], {}, ["triton"]),  # a chunk that has something before it
    ([(0, 21)], {"sliding_window": 20}, ["triton"]),
    ([(0, 21)], {"soft_cap": 1.5}, ["triton"]),
    ([(9, 1)], {}, ["triton"]),
]


@pytest.mark.parametrize(("rows", "options", "expected"), SDPA)
def test_whole_prompts_can_be_left_to_torch_and_the_record_says_so(rows, options, expected):
    cache, batch = make_step(rows, 2, 64, 4, torch.float32)
    cache = finite(cache)
    spec = AttentionSpec(4, 2, 64, 0.125, **options)
    q = torch.randn(len(batch.positions), 4, 64)
    recorder, found = Recorder("full"), []
    recorder.subscribe(found.extend)
    with recording(recorder):
        result = attention.paged_attention(q, cache, batch, spec, sdpa_from=20)
    recorder.close()
    launches = [event for event in found if isinstance(event, KernelLaunched)]
    assert [event.backend for event in launches] == expected
    assert all(("SDPA" in event.why) == (event.backend == "torch") for event in launches)
    whole = attention.paged_attention(q, cache, batch, spec)
    torch.testing.assert_close(result, whole, rtol=0, atol=TOLERANCE[torch.float32])


def test_what_the_kernel_does_not_take_goes_to_torch():
    cache, batch = make_step([(3, 1)], 1, 8, 4, torch.float64)
    cache = finite(cache)
    q = torch.randn(1, 2, 8, dtype=torch.float64)
    spec = AttentionSpec(2, 1, 8, 1.0)
    expected = torch_attention.paged_attention(q, cache, batch, spec)
    assert torch.equal(attention.paged_attention(q, cache, batch, spec), expected)


# ------------------------------------------------------------------- projection to cache, rotated


STEPS = [(True, True), (True, False), (False, True), (False, False)]  # (rotated, normed)
SHAPES = [(torch.float32, 3, 1, 64), (torch.float16, 4, 2, 80), (torch.float32, 5, 5, 6)]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(("steps", "shape"), pairs(STEPS, SHAPES, every=3))
def test_from_the_projection_to_the_result(steps, shape, wide):
    """wide: the projection is in fp32."""
    (rotated, normed), (dtype, heads, kv_heads, head_dim) = steps, shape
    torch.manual_seed(1)
    cache, batch = make_step([(9, 1), (4, 7)], kv_heads, head_dim, 4, dtype)
    cache = finite(cache)
    tokens = len(batch.positions)
    projected = torch.float32 if wide else dtype
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim).to(projected)
    angles = (torch.rand(tokens, 1, head_dim), torch.rand(tokens, 1, head_dim)) if rotated else None
    weights = [torch.rand(head_dim).to(dtype) + 0.5 for _ in range(2)]
    norms = QKNorms(*weights, 1e-5) if normed else None
    spec = AttentionSpec(heads, kv_heads, head_dim, 0.2)
    other = LayerCache(cache.k.clone(), cache.v.clone())
    expected = torch_attention.qkv_attention(qkv, angles, norms, other, batch, spec, dtype)
    found = rotary.qkv_attention(qkv, angles, norms, cache, batch, spec, dtype)
    assert found.dtype == expected.dtype == dtype
    near = {"rtol": 0, "atol": 5e-6 if dtype == torch.float32 else 8e-3}
    torch.testing.assert_close(found, expected, **near)
    torch.testing.assert_close(cache.k, other.k, **near)
    assert torch.equal(cache.v, other.v)


def test_write_kv_takes_parts_of_wider_tensors_and_rounds():
    cache, batch = make_step([(9, 1), (4, 7)], 2, 80, 4, torch.float16)
    cache = finite(cache)
    other = LayerCache(cache.k.clone(), cache.v.clone())
    wide = torch.randn(8, 6, 80)
    k, v = wide[:, 1:3], wide[:, 3:5]
    torch_attention.write_kv(k, v, other, batch.slot_mapping)
    rotary.write_kv(k, v, cache, batch.slot_mapping)
    assert torch.equal(cache.k, other.k)
    assert torch.equal(cache.v, other.v)
