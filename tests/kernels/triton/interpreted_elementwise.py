"""Norms, activation, greatest and block copy in Triton's interpreter against their references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import on_cuda, torch_ops
from engine.kernels.batch import LayerKV
from engine.kernels.launch import recording
from engine.kernels.triton import (
    activation,
    copy_blocks,
    greatest,
    host_exchange,
    norm,
    take_drawn,
    token_mask,
)
from engine.placeholders import NO_TOKEN
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from engine.worker.memory import kv_cache
from tests.support.cases import cases
from tests.support.moving_blocks import move_at_random

FEW = settings(max_examples=cases(8), deadline=None, derandomize=True, database=None)
DTYPES = st.sampled_from([torch.float32, torch.float16])
NEAR = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
}


@given(
    *(st.integers(1, 5), st.integers(1, 1100), DTYPES),
    *(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 99)),
)
@FEW
def test_norms(rows, width, dtype, wide, added, affine, seed):
    """wide, added: the stream, and what is added to it, are in fp32, as models have both."""
    torch.manual_seed(seed)
    stream = torch.float32 if wide else dtype
    delta = torch.float32 if added else dtype
    x, residual = (torch.randn(rows, width).to(kind) * 3 for kind in (delta, stream))
    weight, bias = (torch.randn(width).to(dtype) for _ in range(2))
    near = NEAR[dtype]
    torch.testing.assert_close(
        norm.rms_norm(x, weight, 1e-5), torch_ops.rms_norm(x, weight, 1e-5), **near
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm.torch_ops, "rms_norm", None)
        first = norm.rms_norm(residual, weight, 1e-5)
        found, total = norm.add_rms_norm(x, residual, weight, 1e-5)
    torch.testing.assert_close(first, torch_ops.rms_norm(residual, weight, 1e-5), **near)
    expected, exact = torch_ops.add_rms_norm(x, residual, weight, 1e-5)
    assert total.dtype is exact.dtype and torch.equal(total, exact)
    torch.testing.assert_close(found, expected, **near)
    both = (weight, bias) if affine else (None, None)
    torch.testing.assert_close(
        norm.layer_norm(x, *both, 1e-3), torch_ops.layer_norm(x, *both, 1e-3), **near
    )
    first = norm.layer_norm(residual, *both, 1e-3)
    torch.testing.assert_close(first, torch_ops.layer_norm(residual, *both, 1e-3), **near)
    found, total = norm.add_layer_norm(x, residual, *both, 1e-3)
    expected, exact = torch_ops.add_layer_norm(x, residual, *both, 1e-3)
    assert torch.equal(total, exact)
    torch.testing.assert_close(found, expected, **near)


def test_norms_of_heads_and_of_other_dtypes():
    x = torch.randn(2, 3, 16)
    weight = torch.rand(16)
    torch.testing.assert_close(
        norm.rms_norm(x[:, 1:], weight, 1e-6), torch_ops.rms_norm(x[:, 1:], weight, 1e-6)
    )
    mixed = norm.rms_norm(x.half(), weight, 1e-6)  # plain torch, with its own rules of dtypes
    assert torch.equal(mixed, torch_ops.rms_norm(x.half(), weight, 1e-6))


@given(st.integers(1, 4), st.integers(1, 2100), DTYPES)
@FEW
def test_silu_and_mul(rows, width, dtype):
    x = (torch.randn(rows, 2 * width) * 5).to(dtype)
    expected = torch_ops.silu_and_mul(x.clone())
    torch.testing.assert_close(activation.silu_and_mul(x), expected, **NEAR[dtype])


def test_silu_of_extremes():
    x = torch.tensor([[-200.0, 200.0, 0.0, 1.0, 1.0, 1.0]])
    assert activation.silu_and_mul(x).tolist() == [[0.0, 200.0, 0.0]]


@given(st.integers(1, 600), st.integers(0, 1000))
@FEW
def test_tokens_that_the_step_before_drew(rows, seed):
    """Known tokens stay, and the kernel reads nothing for them: their places may hold anything."""
    torch.manual_seed(seed)
    drawn = torch.randint(-1, 1000, (50,))  # −1: there was none to draw
    ids = torch.randint(0, 1000, (rows,)).where(torch.rand(rows) < 0.5, -1)
    places = torch.randint(0, 50, (rows,)).where(ids < 0, 10**15)
    expected = ids.clone()
    torch_ops.take_drawn(expected, drawn, places)
    take_drawn.take_drawn(ids, drawn, places)
    assert torch.equal(ids, expected)
    assert int(ids.min()) >= 0


@given(st.integers(1, 600), st.integers(0, 9), st.booleans(), st.integers(0, 1000))
@FEW
def test_what_a_step_takes_from_the_host_and_hands_out(rows, more, some_drawn, seed):
    """The rest of each line stays unchanged: other kernels may still copy into it."""
    torch.manual_seed(seed)
    drawn = torch.randint(-1, 1000, (50,)) if some_drawn else None
    staged = torch.randint(0, 1000, (5, rows + more))
    if drawn is not None:
        staged[0] = staged[0].where(torch.rand(rows + more) < 0.5, -1)
        staged[3] = torch.randint(0, 50, (rows + more,)).where(staged[0] < 0, 10**15)
    packed, expected = (torch.full_like(staged, 7) for _ in range(2))
    torch_ops.take_inputs(expected, staged, rows, drawn)
    host_exchange.take_inputs(packed, staged, rows, drawn)
    assert torch.equal(packed, expected)
    there = torch.full((rows + more,), 7)
    host_exchange.hand_out(packed[0, :rows], there)
    assert torch.equal(there[:rows], packed[0, :rows]) and (there[rows:] == 7).all()


@pytest.mark.parametrize("width", [40, 9001])
def test_no_greatest_where_logits_are_not_finite(width):
    inf, nan = float("inf"), float("nan")
    logits = torch.randn(7, width)
    logits[1, -1], logits[2, 0], logits[3, 20] = nan, nan, inf
    logits[4], logits[5] = nan, -inf
    logits[6, 5:] = -inf
    expected = torch_ops.greatest(logits)
    assert (expected == NO_TOKEN).tolist() == [False, *[True] * 5, False]
    assert torch.equal(greatest.greatest(logits), expected)


@given(st.integers(1, 4), st.sampled_from([1, 2, 4095, 4096, 4097, 13000]), DTYPES, st.booleans())
@FEW
def test_greatest(rows, width, dtype, ties):
    x = torch.randn(rows, width) * 9
    x = (x.round() if ties else x).to(dtype)  # rounded ones have equals, and the first one counts
    assert torch.equal(greatest.greatest(x), torch_ops.greatest(x))


def test_blocks_are_copied_in_all_tensors():
    torch.manual_seed(0)
    pools = [torch.randint(-(2**60), 2**60, (6, words)) for words in (3, 1500)]
    expected = [pool.clone() for pool in pools]
    for pool in expected:
        pool[4], pool[5] = pool[0].clone(), pool[2].clone()
    addresses = torch.tensor([pool.data_ptr() for pool in pools])
    words = torch.tensor([pool.shape[1] for pool in pools])
    copy_blocks.copy_blocks(addresses, addresses, words, torch.tensor([[0, 4], [2, 5]]))
    for pool, wanted in zip(pools, expected):
        assert torch.equal(pool, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
@torch.inference_mode()
def test_a_cache_moves_its_blocks_by_the_kernel(dtype, monkeypatch):
    calls = []
    kernel = copy_blocks.copy_blocks
    kernels = replace(on_cuda(), copy_blocks=lambda *facts: calls.append(1) or kernel(*facts))
    monkeypatch.setattr(kv_cache, "kernels_for", lambda device: kernels)
    cache = kv_cache.KVCache([LayerKV(2, 8), LayerKV(1, 4)], 12, 7, 4, dtype, torch.device("cpu"))
    move_at_random(cache, 40)
    assert len(calls) > 10


@pytest.mark.parametrize("width", [10, 1024, 1025])
def test_a_launch_is_recorded_as_it_was_made(width):
    recorder = Recorder("full")
    found: list = []
    recorder.subscribe(found.extend)
    x = torch.randn(3, 2 * width)
    with recording(recorder):
        on_cuda().silu_and_mul(x)
        on_cuda().linear(x, torch.randn(4, 2 * width), None)
    recorder.close()
    launch, product = (event for event in found if isinstance(event, KernelLaunched))
    assert (launch.name, launch.backend) == ("silu_and_mul", "triton")
    assert launch.grid == [3, -(-width // 1024)]
    assert launch.constexprs == {"BLOCK": 1024, "PDL": 0}
    assert launch.num_warps == activation.NUM_WARPS
    assert launch.num_bytes == 4 * 3 * 3 * width
    assert (product.name, product.backend) == ("linear", "triton")  # of three rows
    assert product.flops == 2 * 3 * 4 * 2 * width


@given(st.integers(1, 4), st.sampled_from([1, 31, 32, 33, 1024, 1100, 2049]), st.integers(0, 99))
@FEW
def test_mask_logits(rows, width, seed):
    """Some rows of more, in any order; bits beyond the vocabulary mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows + 2, width, generator=generator)
    lines = torch.randperm(rows + 2, generator=generator)[:rows]
    words = -(-width // 32)
    masks = torch.randint(-(2**31), 2**31, (rows, words), generator=generator, dtype=torch.int32)
    masks[0] = -1 if seed % 2 else 0
    expected = logits.clone()
    torch_ops.mask_logits(expected, masks, lines)
    token_mask.mask_logits(logits, masks, lines)
    assert torch.equal(logits, expected)
