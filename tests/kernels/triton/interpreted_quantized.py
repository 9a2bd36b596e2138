"""Products with quantized weights in Triton's interpreter against the numbers of the formula."""

from __future__ import annotations

import pytest
import torch

import engine.kernels
from engine.kernels import Backend, on_cuda, quantized
from engine.kernels.launch import recording
from engine.kernels.quantized_weight import QuantizedWeight
from engine.kernels.triton import expand, linear_quantized, tiled_quantized
from engine.kernels.triton.code_words import PackedWords, pack_quantized
from engine.layers.quantized import QuantizedLinear
from engine.layers.slot import Filling, Slot
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder
from tests.support.cases import pairs

SHAPES = [(3, 96, 16), (9, 160, 64), (2, 1120, 1120)]
"""(N, K, group): two groups in a block, a short last group, one group of several tiles of words."""


def form(name: str, outputs: int, inputs: int, group: int) -> QuantizedWeight:
    """Make a weight as one of the formats stores it, from random codes and signed scales."""
    draw = torch.Generator().manual_seed(outputs * inputs + len(name))
    groups = -(-inputs // group)

    def whole(below: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.randint(0, below, shape, dtype=dtype, generator=draw)

    def part(dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return (torch.randn(outputs, groups, generator=draw) / 50).to(dtype)

    four, eight = whole(256, outputs, inputs // 2), whole(256, outputs, inputs)
    zeros = whole(17, outputs, groups, dtype=torch.int16)
    match name:
        case "q4_0":
            return QuantizedWeight(four, 4, group, part(), 8)
        case "q4_1":
            return QuantizedWeight(four, 4, group, part(), offsets=part(torch.float32))
        case "awq in another order":
            order = torch.randperm(inputs, generator=draw)
            return QuantizedWeight(four, 4, group, part(), zeros, inputs=order)
        case "nf4":
            table = torch.randn(16, generator=draw)
            return QuantizedWeight(four, 4, group, part(torch.float32), table=table)
        case "squeezellm":
            table = torch.randn(outputs, 16, generator=draw)
            return QuantizedWeight(four, 4, inputs, table=table)
        case "int8 with a factor":
            return QuantizedWeight(eight, 8, group, part(torch.float32), 128, factor=1 / 127)
        case "gptq of 8 bits":
            zeros = whole(257, outputs, groups, dtype=torch.int16)
            return QuantizedWeight(eight, 8, group, part(), zeros)
        case "fp8":
            codes = torch.randn(outputs, inputs, generator=draw).to(torch.float8_e4m3fn)
            codes[0, :3] = torch.tensor([-448.0, -(2**-9), 0.0]).to(torch.float8_e4m3fn)
            return QuantizedWeight(codes, 8, group, part(torch.float32))
    raise ValueError(name)


FORMS = [
    *("q4_0", "q4_1", "awq in another order", "nf4", "squeezellm"),
    *("int8 with a factor", "gptq of 8 bits", "fp8"),
]


@pytest.fixture(params=FORMS)
def name(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """What a kernel doesn't write of its result is NaN; plain torch never answers for it."""

    real = torch.empty

    def empty(*shape, **options):
        made = real(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(linear_quantized.torch, "empty", empty)
    monkeypatch.setattr(quantized, "quantized_linear", None)
    monkeypatch.setattr(quantized, "quantized_embed", None)


def packed(weight: QuantizedWeight) -> PackedWords:
    found = pack_quantized(weight, torch.float32)
    assert isinstance(found, PackedWords) and found.shape == weight.shape
    return found


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(("name", "shape"), pairs(FORMS, SHAPES, every=3))
def test_expanded_numbers_are_those_of_the_formula(name, shape):
    """To the bit where they have no offset; its sum is rounded once here, and twice there."""
    weight = form(name, *shape)
    ids = torch.tensor([shape[0] - 1, 0, 1, 0])
    found, expected = on_cuda().quantized_embed(ids, packed(weight)), weight.dequantize()[ids]
    assert torch.equal(found, expected)  # the interpreter rounds twice, too


@pytest.mark.parametrize(("name", "shape"), pairs(FORMS, SHAPES, every=3))
def test_few_rows(name, shape):
    """In fp32, within the rounding of sums; into a part of wider rows."""
    weight = form(name, *shape)
    laid_out, exact = packed(weight), weight.dequantize().double()
    x, bias = numbers(1, 4, shape[1]), numbers(2, shape[0])
    for rows in (1, 3):
        wide = torch.full((rows, shape[0] + 3), torch.nan)
        on_cuda().quantized_linear(x[:rows], laid_out, bias, wide[:, 2:-1])
        assert wide[:, :2].isnan().all() and wide[:, -1:].isnan().all()
        expected = x[:rows].double() @ exact.T + bias
        assert (wide[:, 2:-1] - expected).abs().max() < 2e-6 * expected.abs().max()


def test_lines_of_several_tiles():
    test_few_rows("awq in another order", (2, 4128, 48))


def test_one_input_gives_the_weights_themselves(name):
    weight = form(name, 3, 32, 16)
    laid_out, expected = packed(weight), weight.dequantize()[:, ::4]
    ones = torch.eye(32)[::4]
    found = torch.cat([on_cuda().quantized_linear(x, laid_out, None) for x in ones.split(4)])
    assert torch.equal(found.T, expected)


@pytest.mark.parametrize("shape", SHAPES[:1], ids=str)
def test_some_rows_on_tensor_cores(name, shape):
    """Weights are rounded to 16 bits there, as the reference rounds them."""
    weight = form(name, *shape)
    x, bias = numbers(1, 17, shape[1], dtype=torch.float16), numbers(2, shape[0])
    rounded = weight.dequantize().half().double()
    out = torch.full((17, shape[0]), torch.nan)
    on_cuda().quantized_linear(x, packed(weight), bias, out)
    expected = x.double() @ rounded.T + bias
    assert (out - expected).abs().max() < 2e-5 * expected.abs().max()


def test_on_tensor_cores_they_are_rounded_as_the_reference_rounds_them(name):
    weight = form(name, 3, 32, 16)
    out = torch.full((17, 3), torch.nan)
    on_cuda().quantized_linear(torch.eye(32)[:17].half(), packed(weight), None, out)
    assert torch.equal(out.T, weight.dequantize()[:, :17].half().float())


@pytest.mark.parametrize("name", ["q4_1", "awq in another order", "fp8"])
def test_many_rows_are_multiplied_by_expanded_weights(name, monkeypatch):
    """Some outputs at a time; also in fp64, which the kernels don't take."""
    monkeypatch.setattr(quantized, "EXPANDED", 64 * 2)
    weight = form(name, 5, 64, 32)
    laid_out, exact = packed(weight), weight.dequantize().double()
    for rows, dtype in ((tiled_quantized.MOST_ROWS + 1, torch.float32), (2, torch.float64)):
        x, bias = numbers(1, rows, 64, dtype=dtype), numbers(2, 5, dtype=dtype)
        found = on_cuda().quantized_linear(x, laid_out, bias)
        expected = x.double() @ exact.T + bias
        assert found.dtype is dtype
        assert (found - expected).abs().max() < 2e-6 * expected.abs().max()
    wide = torch.full((70, 5), torch.nan)
    x = numbers(3, 70, 64, dtype=torch.float16)
    on_cuda().quantized_linear(x, laid_out, None, wide)
    torch.testing.assert_close(
        wide, x.float() @ weight.dequantize().half().float().T, rtol=1e-4, atol=1e-4
    )


def test_a_token_that_is_not_there_is_nan():
    laid_out = packed(form("squeezellm", 5, 64, 32))
    found = on_cuda().quantized_embed(torch.tensor([5, 2, -1]), laid_out)
    assert found.isnan().all(1).tolist() == [True, False, True]
    assert found.isnan().any(1).tolist() == [True, False, True]


def test_a_layer_multiplies_by_codes(monkeypatch):
    """Its two parts are of one kind, so one launch computes both."""
    monkeypatch.setitem(engine.kernels.BACKENDS, "cpu", Backend(on_cuda, asynchronous=False))
    layer = QuantizedLinear(32, {"gate_proj": 3, "up_proj": 5}, bias=False)
    weights = [form("q4_0", outputs, 32, 16) for outputs in (3, 5)]
    for (_, slot), weight in zip(layer.weight_targets("mlp"), weights):
        assert isinstance(slot, Slot)
        slot.fill(Filling(weight))
    layer.pack()
    assert [type(run.weight) for run in layer.runs] == [PackedWords]
    x = numbers(4, 2, 32)
    expected = x @ torch.cat([weight.dequantize() for weight in weights]).T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "weight",
    [
        QuantizedWeight(torch.ones(8, 8, dtype=torch.uint8), 4, 16),  # K fills no block
        QuantizedWeight(torch.ones(8, 32, dtype=torch.uint8), 4, 8, torch.ones(8, 8)),
        QuantizedWeight(torch.ones(8, 16, dtype=torch.uint8), 8, 16, table=torch.ones(256)),
    ],
    ids=["K", "group", "table of 256"],
)
def test_what_the_kernels_do_not_take_is_left_to_torch(weight, monkeypatch):
    assert pack_quantized(weight, torch.float32) is weight
    monkeypatch.undo()
    x = numbers(10, 3, weight.shape[1])
    found = on_cuda().quantized_linear(x, weight, None)
    torch.testing.assert_close(found, x @ weight.dequantize().T)
    ids = torch.tensor([3, 1])
    assert torch.equal(on_cuda().quantized_embed(ids, weight), weight.dequantize()[ids])


def test_a_launch_counts_the_bytes_that_are_read():
    weight = form("q4_0", 5, 64, 32)
    laid_out, recorder = packed(weight), Recorder("full")
    assert laid_out.num_bytes == weight.num_bytes
    seen: list = []
    recorder.subscribe(seen.extend)
    with recording(recorder):
        for rows in (3, 17, 70):
            on_cuda().quantized_linear(numbers(1, rows, 64, dtype=torch.float16), laid_out, None)
        on_cuda().quantized_embed(torch.tensor([1, 1]), laid_out)
    recorder.close()
    few, some, written, many, looked_up = (e for e in seen if isinstance(e, KernelLaunched))
    for event, rows in ((few, 3), (some, 17)):
        assert (event.name, event.backend) == ("linear_quantized", "triton")
        assert event.num_bytes == weight.num_bytes + 2 * rows * (64 + 5)
        assert event.flops == 2 * rows * 5 * 64
    assert "integers in groups of 32, 4.50 bits" in few.why and few.grid != some.grid
    assert (written.name, many.name, many.backend) == ("expand_quantized", "linear", "torch")
    assert written.num_bytes == weight.num_bytes + 2 * 5 * 64
    assert looked_up.num_bytes == 2 * weight.num_bytes // 5 + 4 * 2 * 64
    assert expand.PIECE > 8 and looked_up.grid == [2, 1]
