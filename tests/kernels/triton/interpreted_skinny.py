"""Products of few rows in Triton's interpreter against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels import few_rows, on_cuda, torch_ops
from engine.kernels.launch import recording
from engine.kernels.triton import catalogue, linear, skinny
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.support.cases import cases

FEW = settings(max_examples=cases(12), deadline=None, derandomize=True, database=None)
DTYPES = st.sampled_from([torch.float32, torch.float16])
NEAR = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
}
STREAMS = st.sampled_from([None, torch.float32])
ROWS = st.integers(1, skinny.MAX_ROWS)
WIDTHS = st.one_of(st.integers(1, 40), st.sampled_from([64, 1000, 1024, 1025, 2048, 2500]))
OUTPUTS = st.one_of(st.integers(1, 9), st.just(33))


def tensors(rows, inputs, outputs, dtype, seed, gated=False, stream=None):
    """x, weight, bias, norm, residual; weights as large as those of models. stream: dtype of the
    residual and, if the product begins with a norm, of x; None: that of the others."""
    torch.manual_seed(seed)
    lines = 2 * outputs if gated else outputs
    x = torch.randn(rows, inputs).to(stream if gated and stream else dtype)
    weight = (torch.randn(lines, inputs) * inputs**-0.5).to(dtype)
    bias, norm = torch.randn(lines).to(dtype), (torch.rand(inputs) + 0.5).to(dtype)
    return x, weight, bias, norm, torch.randn(rows, outputs).to(stream or dtype)


def skinny_alone(call, *facts):
    """The call's result; plain torch must not be what answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear.torch_ops, "linear", None)
        return call(*facts)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel doesn't write of its result is NaN."""

    def empty(*shape, **options):
        return torch.full(*shape, float("nan"), **options)

    monkeypatch.setattr(skinny.torch, "empty", empty)


@given(ROWS, WIDTHS, OUTPUTS, DTYPES, STREAMS, st.booleans(), st.integers(0, 99))
@FEW
def test_linear(rows, inputs, outputs, dtype, stream, biased, seed):
    x, weight, bias, _, residual = tensors(rows, inputs, outputs, dtype, seed, stream=stream)
    bias = bias if biased else None
    near = NEAR[dtype]
    expected = torch_ops.linear(x, weight, bias)
    torch.testing.assert_close(linear.linear(x, weight, bias), expected, **near)
    wide = linear.linear(x, weight, bias, wide=True)
    exact = torch_ops.linear(x.float(), weight.float(), None if bias is None else bias.float())
    torch.testing.assert_close(wide, exact, rtol=1e-4, atol=1e-5)
    expected = few_rows.linear_relu(x, weight, bias)
    torch.testing.assert_close(linear.linear_relu(x, weight, bias), expected, **near)
    expected = few_rows.linear_add(x, weight, bias, residual)
    found = skinny_alone(linear.linear_add, x, weight, bias, residual)
    torch.testing.assert_close(found, expected, **near)


@given(ROWS, WIDTHS, OUTPUTS, DTYPES, st.integers(0, 99))
@FEW
def test_logits_are_not_rounded(rows, inputs, outputs, dtype, seed):
    x, weight, *_ = tensors(rows, inputs, outputs, dtype, seed)
    found = linear.logits(x, weight)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, torch_ops.logits(x, weight), rtol=1e-4, atol=1e-5)


@given(ROWS, WIDTHS, OUTPUTS, DTYPES, STREAMS, st.booleans(), st.integers(0, 99))
@FEW
def test_after_a_norm(rows, inputs, outputs, dtype, stream, biased, seed):
    x, weight, bias, norm, _ = tensors(rows, inputs, outputs, dtype, seed, True, stream)
    facts = (x * 7, norm, 1e-5, weight, bias if biased else None)
    near = NEAR[dtype]
    for ours, reference in (
        (linear.norm_linear, few_rows.norm_linear),
        (linear.norm_gated, few_rows.norm_gated),
    ):
        found, expected = skinny_alone(ours, *facts), reference(*facts)
        torch.testing.assert_close(found.to(dtype), expected, **near)
        assert found.dtype is (dtype if ours is linear.norm_gated else torch.float32)


def test_no_nan_is_lost():
    x, weight, bias, norm, residual = tensors(3, 70, 6, torch.float32, 0)
    x[1, 69] = float("nan")
    for found in (
        linear.linear_relu(x, weight, bias),
        linear.linear_add(x, weight, bias, residual),
        linear.norm_linear(x, norm, 1e-5, weight, bias),
        linear.norm_gated(x, norm, 1e-5, weight, bias),
    ):
        assert found.isnan().any(1).tolist() == [False, True, False]
        assert found[1].isnan().all()


def test_more_rows_and_other_layouts_are_torchs():
    x, weight, bias, norm, residual = tensors(5, 70, 6, torch.float32, 0)
    assert torch.equal(linear.linear(x, weight, bias), torch_ops.linear(x, weight, bias))
    assert torch.equal(
        linear.linear_add(x, weight, bias, residual),
        few_rows.linear_add(x, weight, bias, residual),
    )
    facts = (x, norm, 1e-5, weight, bias)
    assert torch.equal(linear.norm_gated(*facts), few_rows.norm_gated(*facts))
    across = x.T.contiguous().T[:2]
    assert not across.is_contiguous()
    assert torch.equal(
        linear.linear_relu(across, weight, bias), few_rows.linear_relu(across, weight, bias)
    )


def test_the_record_says_which_and_why():
    recorder = Recorder("full")
    found: list = []
    recorder.subscribe(found.extend)
    x, weight, bias, norm, _ = tensors(5, 1024, 6, torch.float16, 0)
    with recording(recorder):
        on_cuda().linear(x[:3], weight, None)
        on_cuda().linear(x, weight, None)
        on_cuda().few_rows.norm_gated(x[:1], norm, 1e-5, weight, bias)
    recorder.close()
    few, many, gated = (event for event in found if isinstance(event, KernelLaunched))
    assert (few.name, few.backend, few.grid) == ("linear", "triton", [6])
    assert few.num_bytes == 2 * (3 * 1024 + 6 * 1024 + 3 * 6)
    assert few.flops == 2 * 3 * 6 * 1024
    assert "3 rows reuse no weight" in few.why
    assert (many.name, many.backend) == ("linear", "torch")
    assert "5 rows" in many.why
    assert (gated.name, gated.backend, gated.grid) == ("norm_gated", "triton", [2])
    assert gated.constexprs["NORM"] == gated.constexprs["GATED"] == gated.constexprs["BIAS"] == 1


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_a_tile_fits_the_registers(rows, gated):
    for inputs in (1, 100, 768, 1024, 2048, 4096, 8192, 11008):
        for lines in (2, 2048, 4096, 100_000):
            cut = skinny.constants(rows, lines, inputs, skinny.Form(gated=gated))
            threads = 32 * skinny.warps(cut)
            assert cut["ROWS"] >= rows
            assert cut["ROWS"] * cut["BLOCK_N"] * cut["BLOCK_K"] <= 64 * threads
            assert cut["BLOCK_N"] % (2 if gated else 1) == 0
            assert cut["BLOCK_K"] % cut["VECTOR"] == 0
            assert all(n & (n - 1) == 0 for n in (cut["ROWS"], cut["BLOCK_N"], cut["BLOCK_K"]))


@pytest.mark.parametrize(("inputs", "lines"), catalogue.SHAPES)
def test_every_tile(lines, inputs):
    """Two of the outputs' tiles, one of them not whole, of each shape that is cut differently."""
    few = skinny.tile_for(lines, inputs)
    outputs = few.lines + 1
    x, weight, _, norm, _ = tensors(2, inputs, outputs, torch.float32, 0, gated=True)
    facts, near = (x, norm, 1e-5, weight, None), NEAR[torch.float32]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(skinny, "tile_for", lambda *shape: few)
        torch.testing.assert_close(linear.norm_gated(*facts), few_rows.norm_gated(*facts), **near)
