"""Quantized products that gate one half of their outputs by the other, in every variant.

Their sums are those of the plain products, and aren't rounded before silu.
"""

from __future__ import annotations

import pytest
import torch

from engine.kernels.cpu import expanded_ops
from engine.kernels.cpu.expanded_ops import PackedExpandable
from engine.kernels.cpu.quantized_panels import PackedPanels
from engine.kernels.cpu.tape import Arena, Tape
from engine.kernels.int8_activations import with_rounded_activations
from engine.kernels.launch import recording
from engine.kernels.quantized_weight import QuantizedWeight
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.kernels.cpu.test_quantized_kernels import (
    DTYPES,
    expect_same_on_threads,
    form,
    numbers,
)
from tests.support.cases import pairs

SHAPES = [(64, 96, 32), (96, 200, 64), (32, 416, 256), (160, 704, 704), (224, 192, 64)]
"""(N, K, group): short last groups, one group, groups that are longer than what is expanded at
once, groups that are no whole steps of matrix tiles; on AVX512 an odd number of panels, too."""
EXACT = [
    "q4_0", "q4_1", "q4_k", "awq", "gptq in another order", "mxfp4", "q8_0", "q5_0",
    "gptq of 8 bits", "8 bits with one zero", "bitsandbytes int8", "fp8",
]  # fmt: skip
ROUNDING = [
    "q4_0", "q4_1", "awq", "gptq in another order", "q8_0", "gptq of 8 bits", "8 bits with one zero"
]  # fmt: skip
FORMS = [(name, False) for name in EXACT] + [(name, True) for name in ROUNDING]
"""(weight, whether activations are rounded to 8 bits)."""
ROWS = (1, 2, 3, 4, 5, 8, 9, 12, 13, 16, 17, 24, 97, 200)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def weight_of(name: str, rounds: bool, *shape: int) -> QuantizedWeight:
    weight = form(name, *shape)
    return with_rounded_activations(weight) if rounds else weight


def packed(
    ops, weight: QuantizedWeight, dtype: torch.dtype = torch.bfloat16
) -> PackedPanels | PackedExpandable:
    found = ops.pack_quantized_gated(weight, dtype)
    assert isinstance(found, PackedPanels | PackedExpandable) and found.gated
    return found


@pytest.mark.parametrize(("named", "shape"), pairs(FORMS, SHAPES, every=2), ids=str)
def test_a_gated_product_is_silu_of_the_plain_ones_sums(ops, named, shape):
    """To the bit, rounded once, for any number of rows; the result goes into a wider tensor."""
    outputs, inputs, _ = shape
    weight = weight_of(*named, *shape)
    for dtype in DTYPES:
        gated, plain = packed(ops, weight, dtype), ops.pack_quantized(weight, dtype)
        assert gated.num_bytes == plain.num_bytes and gated.shape == plain.shape
        x = numbers(1, max(ROWS), inputs, dtype=dtype) / 64  # so that no result is subnormal
        sums = torch.full((len(x), outputs), torch.nan)
        ops.quantized_linear(x, plain, None, sums)
        expected = ops.silu_and_mul(sums).to(dtype)
        for rows in ROWS:
            wide = torch.full((rows, outputs // 2 + 3), torch.nan, dtype=dtype)
            found = ops.quantized_linear(x[:rows], gated, None, wide[:, 2:-1])
            assert found.data_ptr() == wide[:, 2:].data_ptr()
            assert wide[:, :2].isnan().all() and wide[:, -1:].isnan().all()
            assert torch.equal(found, expected[:rows])
        alone = torch.cat([ops.quantized_linear(row, gated, None) for row in x[-3:].split(1)])
        assert torch.equal(alone, expected[-3:])


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("name", ["q4_1", "q8_0"])
def test_the_sums_are_those_of_each_half(ops, name, rounds):
    """Beside the formula in torch, whose outputs nobody reordered."""
    weight = weight_of(name, rounds, 96, 256, 32)
    x = numbers(2, 20, 256) / 4
    sums = x.double() @ weight.dequantize().double().T
    expected = torch.nn.functional.silu(sums[:, :48]) * sums[:, 48:]
    found = ops.quantized_linear(x, packed(ops, weight, torch.float32), None)
    near = 0.03 if rounds else 1e-5
    assert float((found - expected).abs().max() / expected.abs().max()) < near


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("outputs", [2048, 2080])  # lines of y: whole; half of one
@pytest.mark.parametrize("name", ["q4_1", "awq", "q8_0"])
def test_a_row_of_a_prompt_is_the_same_in_any_company(ops, name, outputs, rounds):
    """Its outputs are more than a core's caches hold: plain ones take another way on tiles."""
    rows, laid_out = 1100, packed(ops, weight_of(name, rounds, outputs, 96, 32))
    x = numbers(17, rows, 96, dtype=torch.bfloat16)
    found = ops.quantized_linear(x, laid_out, None)
    assert found.nbytes > 2 << 20
    few = torch.cat([ops.quantized_linear(some, laid_out, None) for some in x.split(7)])
    assert torch.equal(found, few)
    assert torch.equal(ops.quantized_linear(x[:-70], laid_out, None), few[:-70])


@pytest.mark.parametrize(("name", "rounds"), [("awq", False), ("q8_0", False), ("q4_0", True)])
@pytest.mark.parametrize("rows", [1, 2, 6, 200])
def test_a_row_is_the_same_on_any_number_of_threads(ops, rows, name, rounds):
    laid_out = packed(ops, weight_of(name, rounds, 416, 384, 32))
    expect_same_on_threads(ops, laid_out, numbers(3, rows, 384, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["q4_1", "q8_0", "fp8"])
def test_numbers_of_any_size_are_gated_alike_alone_and_in_company(ops, name, dtype):
    """Matrix tiles take subnormal numbers for zeros, and silu of large ones makes them."""
    laid_out = packed(ops, form(name, 64, 320, 32), dtype)
    sizes = 2.0 ** torch.arange(-132, 48, 6)[:, None]  # of rows: the smallest is subnormal
    x = (numbers(15, len(sizes), 320) * sizes).to(dtype)
    for out_type in (torch.float32, dtype):
        out = [torch.full((n, 32), torch.nan, dtype=out_type) for n in (1,) * len(x) + (len(x),)]
        for some, of in zip([*x.split(1), x], out):
            ops.quantized_linear(some, laid_out, None, of)
        assert torch.equal(torch.cat(out[:-1]), out[-1]) and out[-1].isfinite().all()


def test_weights_are_laid_out_some_panels_at_a_time(ops, monkeypatch):
    """Gate's outputs and up's are gathered for each turn, so that no second copy is made of all."""
    for name, group in (("awq", 64), ("q8_0", 32)):
        weight = form(name, 416, 192, group)
        whole = packed(ops, weight)
        with monkeypatch.context() as patch:
            patch.setattr(expanded_ops, "PACKED_AT_ONCE", 3 * 192 * 32)  # 3 panels
            assert torch.equal(packed(ops, weight).data, whole.data)


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (form("q4_0", 40, 64, 32), torch.bfloat16),  # half of it, 20, fills no vector of 8
        (form("q8_0", 2, 64, 32), torch.float32),
        (form("squeezellm", 64, 64, 64), torch.bfloat16),
        (form("q4_0", 64, 64, 32), torch.float64),  # the kernels take no such rows
        (QuantizedWeight(torch.ones(64, 5, dtype=torch.uint8), 8, 5), torch.bfloat16),
    ],
    ids=["a part of a vector", "less than one", "tables of rows", "fp64", "K"],
)
def test_what_the_kernels_do_not_gate_is_left_to_others(ops, weight, dtype):
    if weight.shape[0] == 40 and ops.panel in (0, 8):
        pytest.skip("vectors of 4")
    assert ops.pack_quantized_gated(weight, dtype) is None


@pytest.mark.parametrize(("name", "rounds"), [("awq", False), ("q8_0", False), ("q4_0", True)])
def test_the_record_and_a_tape_say_what_is_computed(ops, name, rounds):
    laid_out = packed(ops, weight_of(name, rounds, 64, 256, 64))
    x, recorder = numbers(11, 3, 256, dtype=torch.bfloat16), Recorder("full")
    seen: list = []
    recorder.subscribe(seen.extend)
    with recording(recorder):
        out = ops.quantized_linear(x, laid_out, None)
    recorder.flush()
    recorder.close()
    [launched] = [event for event in seen if isinstance(event, KernelLaunched)]
    assert launched.name == "linear_quantized_gated" and launched.grid == [32]
    assert launched.num_bytes == laid_out.num_bytes + x.nbytes + out.nbytes
    assert launched.flops == 2 * 3 * 64 * 256
    tape = Tape(ops.replay, Arena())
    with tape.recording():
        played = ops.quantized_linear(x, laid_out, None)
    assert (tape.num_kernels, tape.num_torch_operations) == (1, 0)
    x.copy_(numbers(13, 3, 256))
    tape.play()
    assert torch.equal(played, ops.quantized_linear(x, laid_out, None))


@pytest.mark.parametrize("outputs", [64, 96, 4160])  # lines of y: whole; half of one; past caches
@pytest.mark.parametrize("name", ["q4_0", "awq"])
def test_large_groups_of_4_bits_are_gated_like_an_expanded_checkpoint(ops, name, outputs):
    weight = form(name, outputs, 192, 64)
    laid_out = packed(ops, weight)
    if not ops.tiles:
        pytest.skip("only tiles of AMX expand them")
    assert isinstance(laid_out, PackedExpandable)
    expanded, _ = ops.pack_gated(weight.dequantize().bfloat16(), None)
    x = numbers(7, 600, 192).bfloat16()
    for rows in (1, 2, 16, 17, 48, 600):
        expected = ops.linear_gated(x[:rows], expanded, None)
        out = torch.full(expected.shape, torch.nan, dtype=expected.dtype)
        assert torch.equal(ops.quantized_linear(x[:rows], laid_out, None, out), expected)
    assert torch.equal(ops.quantized_linear(x, laid_out, None), expected)


def test_their_subnormal_outputs_are_zeros_whatever_the_rows(ops):
    """As those of `linear_gated` are. silu of very negative numbers makes them."""
    if not ops.tiles:
        pytest.skip("only tiles of AMX expand them")
    outputs, rows = 2080, 600  # past the caches; one row and 17 aren't
    codes = torch.full((2 * outputs, 32), 0x99, dtype=torch.uint8)  # weights are scales
    scales = torch.cat((torch.full((outputs, 1), -87 / 64), torch.full((outputs, 1), 2.0**-14)))
    weight = QuantizedWeight(codes, 4, 64, scales, 8)
    laid_out = packed(ops, weight)
    expanded, _ = ops.pack_gated(weight.dequantize().bfloat16(), None)
    x = torch.ones(rows, 64).bfloat16()
    exact = ops.quantized_linear(x[:1], laid_out, None, torch.empty(1, outputs))
    assert 0 < exact.abs().min() <= exact.abs().max() < torch.finfo(torch.bfloat16).tiny
    for some in (1, 17, rows):
        out = torch.full((some, outputs), torch.nan, dtype=torch.bfloat16)
        ops.quantized_linear(x[:some], laid_out, None, out)
        assert not out.any() and torch.equal(out, ops.linear_gated(x[:some], expanded, None))
