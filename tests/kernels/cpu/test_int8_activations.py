"""Products with activations in 8 bits: the formula's numbers, its bound, the same in company."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.kernels import int8_activations, quantized
from engine.kernels.cpu.tape import Arena, Tape
from engine.kernels.int8_activations import most_lost, with_rounded_activations
from engine.kernels.launch import recording
from engine.kernels.quantized_weight import QuantizedWeight, alike
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.kernels.cpu.test_quantized_kernels import (
    DTYPES,
    expect_same_on_threads,
    form,
    numbers,
    off,
    packed,
)

SHAPES = [
    *((37, 96, 32), (33, 48, 16), (64, 200, 64), (8, 416, 256), (40, 704, 704), (40, 768, 384)),
    (70, 96, 24),
]
"""(N, K, group): rows that end within a panel, short last groups, groups that are cut, groups that
are no whole steps of matrix tiles."""
FORMS = [
    "q4_0", "q4_1", "q4_k", "awq", "gptq in another order", "q8_0", "q5_0", "gptq of 8 bits",
    "8 bits with one zero",
]  # fmt: skip
ROWS = (1, 2, 3, 4, 5, 7, 12, 13, 16, 17, 40)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def rounding(name: str, *shape: int) -> QuantizedWeight:
    weight = with_rounded_activations(form(name, *shape))
    assert weight.x_group
    return weight


def spread(seed: int, rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    """Draw activations some of which are much larger than others, as a model's are."""
    return (numbers(seed, rows, inputs) * numbers(seed + 1, rows, inputs).mul(1.5).exp()).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_what_rounding_loses_is_within_the_bound(name, shape):
    """The bound is stated on the exact result; it is of use only if it is not far off."""
    weight = rounding(name, *shape)
    x = spread(1, 20, shape[1], torch.float32)
    exact = x.double() @ weight.dequantize().double().T
    lost = (quantized.quantized_linear(x, weight, None).double() - exact).abs()
    bound = most_lost(x, weight)
    assert bool((lost <= bound + 1e-5 * exact.abs().max()).all())
    assert float((lost / bound).max()) > 0.05


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_products(ops, name, shape):
    """The formula's numbers: to the bit where the CPU fuses a product and a sum. The result goes
    into a wider tensor, and a row is the same by itself and with any others."""
    dtype = DTYPES[(FORMS.index(name) + SHAPES.index(shape)) % 2]  # each, in diagonals
    outputs, inputs, _ = shape
    weight = rounding(name, *shape)
    laid_out = packed(ops, weight)
    x, bias = spread(3, max(ROWS), inputs, dtype), numbers(2, outputs, dtype=dtype)
    expected = quantized.quantized_linear(x, weight, bias, torch.empty(len(x), outputs))
    alone = torch.cat(
        [ops.quantized_linear(row, laid_out, bias, torch.empty(1, outputs)) for row in x.split(1)]
    )
    if ops.variant == "portable":
        assert off(alone, expected.double()) < 2e-6
    else:
        assert torch.equal(alone, expected)
    for rows in ROWS:
        wide = torch.full((rows, outputs + 3), torch.nan)
        found = ops.quantized_linear(x[:rows], laid_out, bias, wide[:, 2:-1])
        assert wide[:, :2].isnan().all() and wide[:, -1:].isnan().all()
        assert torch.equal(found, alone[:rows])
    rounded = ops.quantized_linear(x[:5], laid_out, bias)
    assert rounded.dtype is dtype and torch.equal(rounded, alone[:5].to(dtype))


@pytest.mark.parametrize("rows", [1, 2, 6, 300])
@pytest.mark.parametrize("name", ["awq", "q8_0"])
def test_a_row_is_the_same_on_any_number_of_threads(ops, name, rows):
    laid_out = packed(ops, rounding(name, 420, 384, 32))
    expect_same_on_threads(ops, laid_out, spread(5, rows, 384, torch.bfloat16))


def test_nor_does_it_depend_on_how_many_rows_a_cache_holds(ops):
    laid_out = packed(ops, rounding("q4_0", 40, 8192, 32))
    x = spread(7, 270, 8192, torch.bfloat16)
    alone = torch.cat([ops.quantized_linear(row, laid_out, None) for row in x[250:].split(1)])
    assert torch.equal(ops.quantized_linear(x, laid_out, None)[250:], alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nor_on_whether_caches_hold_the_outputs(ops, dtype):
    laid_out = packed(ops, rounding("q4_1", 1040, 64, 32))
    x, bias = spread(9, 1100, 64, dtype), numbers(4, 1040, dtype=dtype)
    out = ops.quantized_linear(x, laid_out, bias)
    assert out.nbytes > 2 << 20
    for rows in (slice(0, 3), slice(1083, 1100)):
        assert torch.equal(ops.quantized_linear(x[rows], laid_out, bias), out[rows])


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "gptq of 8 bits"])
def test_codes_at_their_limits_do_not_run_over(ops, name):
    """Sums of products in 16 bits would, with the largest codes of both."""
    weight = rounding(name, 40, 64, 32)
    most = torch.full_like(weight.codes, 255)
    for codes in (
        most,
        torch.zeros_like(most),
        torch.where(torch.arange(40)[:, None] > 20, 255, 0),
    ):
        extreme = replace(weight, codes=codes.to(torch.uint8).expand_as(most).contiguous())
        x = torch.ones(4, 64) * torch.tensor([1.0, -1.0, 0.5, 0])[:, None]
        x[2, ::2] *= -1
        expected = quantized.quantized_linear(x, extreme, None)
        assert off(ops.quantized_linear(x, packed(ops, extreme), None), expected.double()) < 2e-6


def test_rows_of_any_size_and_what_is_no_number_stay_by_themselves(ops):
    """A group that is nearly zero counts as zeros; what isn't finite is so in its own row only."""
    weight = rounding("q8_0", 48, 320, 32)
    laid_out = packed(ops, weight)
    sizes = 2.0 ** torch.arange(-132, 120, 18)[:, None]  # the smallest is subnormal
    x = torch.cat((numbers(8, len(sizes), 320) * sizes, numbers(9, 3, 320)))
    x[-3, 5], x[-2, 200] = torch.inf, torch.nan
    together = ops.quantized_linear(x, laid_out, None)
    assert together[-3:-1].isnan().all() and together[:-3].isfinite().all()
    assert together[0].eq(0).all() and together[-1].isfinite().all()
    alone = torch.cat([ops.quantized_linear(row, laid_out, None) for row in x.split(1)])
    assert torch.equal(alone.nan_to_num(nan=7e30), together.nan_to_num(nan=7e30))
    expected = quantized.quantized_linear(x, weight, None)
    assert off(together[2:-3], expected[2:-3].double()) < 2e-6


def test_tables_and_8_bit_floats_are_multiplied_exactly():
    for name in ("mxfp4", "squeezellm", "fp8"):
        weight = form(name, 40, 64, 64)
        assert with_rounded_activations(weight) is weight
    odd = form("q8_0", 40, 900, 300)  # a group that can't be cut into parts of 128
    assert with_rounded_activations(odd) is odd


def test_what_the_kernels_do_not_take_is_computed_by_the_formula(ops):
    weight = with_rounded_activations(QuantizedWeight(form("q4_0", 8, 10, 10).codes, 4, 10))
    assert ops.pack_quantized(weight, torch.bfloat16) is weight
    x = numbers(10, 3, 10)
    found, exact = ops.quantized_linear(x, weight, None), x @ weight.dequantize().T
    assert float((found - exact).abs().max()) > 0
    assert bool(((found - exact).abs() <= most_lost(x, weight) + 1e-5).all())


def test_a_weight_with_the_option_joins_only_its_like():
    plain = form("q4_0", 40, 64, 32)
    assert not alike(plain, with_rounded_activations(plain))


def test_a_factor_multiplies_the_sums(ops):
    weight, bias = replace(rounding("q4_1", 40, 64, 32), factor=1 / 127), numbers(12, 40)
    x = numbers(11, 3, 64)
    expected = quantized.quantized_linear(x, weight, bias)
    found = ops.quantized_linear(x, packed(ops, weight), bias)
    assert off(found, expected.double()) < 1e-6
    assert ops.variant == "portable" or torch.equal(found, expected)
    assert bool(
        ((found - bias - x @ weight.dequantize().T).abs() <= most_lost(x, weight) + 1e-5).all()
    )


def test_a_launch_says_so_and_a_tape_repeats_it(ops):
    laid_out = packed(ops, rounding("gptq in another order", 96, 64, 32))
    x, recorder = numbers(12, 2, 64), Recorder("full")
    seen: list = []
    recorder.subscribe(seen.extend)
    with recording(recorder):
        ops.quantized_linear(x, laid_out, None)
    recorder.flush()
    recorder.close()
    [launched] = [event for event in seen if isinstance(event, KernelLaunched)]
    assert "activations int8 in groups of 32" in launched.why
    tape = Tape(ops.replay, Arena())
    with tape.recording():
        out = ops.quantized_linear(x, laid_out, None)
    assert (tape.num_kernels, tape.num_torch_operations) == (1, 0)
    x.copy_(numbers(13, 2, 64))
    expected = ops.quantized_linear(x, laid_out, None)
    tape.play()
    assert torch.equal(out, expected)


def test_the_rounded_numbers_are_the_nearest():
    """Of each group the largest becomes 127 or -127, ties go to the even number."""
    weight = rounding("q8_0", 8, 64, 32)
    x = torch.zeros(1, 64)
    x[0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    x[0, 32:34] = torch.tensor([-3.0, 1.0])
    codes, scales = int8_activations.rounded(x, weight)
    assert codes[0, 0, :4].tolist() == [127, 0, 2, -2] and codes[0, 1, :2].tolist() == [-127, 42]
    torch.testing.assert_close(scales, torch.tensor([[1.0, 3 / 127]]))
