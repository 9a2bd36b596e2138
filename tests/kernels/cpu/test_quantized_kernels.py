"""The native products with quantized weights: exact, the same in any company, in every variant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.kernels import quantized
from engine.kernels.cpu.code_kinds import Kind
from engine.kernels.cpu.expanded_ops import PackedExpandable
from engine.kernels.cpu.quantized_panels import PackedPanels
from engine.kernels.cpu.table_ops import PackedTables
from engine.kernels.cpu.tape import Arena, Tape
from engine.kernels.launch import recording
from engine.kernels.quantized_weight import QuantizedWeight
from engine.trace.events import KernelLaunched
from engine.trace.recorder import Recorder

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = [
    *((37, 96, 32), (33, 48, 16), (64, 200, 64), (130, 320, 128), (65, 192, 192), (8, 416, 256)),
    (40, 704, 704),
]
"""(N, K, group): rows that end within a panel, short last groups, one group, groups that are longer
than what is expanded at once, groups that are no whole steps of matrix tiles."""
ROWS = (1, 2, 3, 4, 5, 7, 12, 13, 40)


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def form(name: str, outputs: int, inputs: int, group: int) -> QuantizedWeight:
    """Make a weight as one of the formats stores it, from random codes and signed scales."""
    draw = torch.Generator().manual_seed(outputs * inputs + len(name))
    groups = -(-inputs // group)

    def whole(below: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.randint(0, below, shape, dtype=dtype, generator=draw)

    def part(dtype: torch.dtype = torch.float16, groups: int = groups) -> torch.Tensor:
        return (torch.randn(outputs, groups, generator=draw) / 50).to(dtype)

    four, eight = whole(256, outputs, inputs // 2), whole(256, outputs, inputs)
    wide = torch.float32
    zeros = whole(17, outputs, groups, dtype=torch.int16)
    match name:
        case "q4_0":
            return QuantizedWeight(four, 4, group, part(), 8)
        case "q4_1":
            return QuantizedWeight(four, 4, group, part(), offsets=part())
        case "q4_k":
            return QuantizedWeight(four, 4, group, part(wide), offsets=part(wide))
        case "awq":
            return QuantizedWeight(four, 4, group, part(), zeros)
        case "gptq in another order":
            order = torch.randperm(inputs, generator=draw)
            return QuantizedWeight(four, 4, group, part(torch.bfloat16), zeros, inputs=order)
        case "mxfp4":
            table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
            scales = 2.0 ** whole(9, outputs, groups).sub(4).to(torch.int8).float()
            return QuantizedWeight(four, 4, group, scales, table=torch.cat((table, -table)))
        case "squeezellm":
            table = torch.randn(outputs, 16, generator=draw)
            return QuantizedWeight(four, 4, inputs, table=table)
        case "tables with all else":
            table = torch.randn(outputs, 16, generator=draw)
            one = (torch.randn(outputs, 1, generator=draw).half() for _ in range(2))
            scales, offsets = one
            return QuantizedWeight(four, 4, inputs, scales, zeros[:, :1], offsets, table)
        case "q8_0":
            return QuantizedWeight(eight, 8, group, part(), 128)
        case "q5_0":
            return QuantizedWeight(eight % 32, 8, group, part(), 16)
        case "gptq of 8 bits":
            zeros = whole(257, outputs, groups, dtype=torch.int16)
            return QuantizedWeight(eight, 8, group, part(wide), zeros)
        case "8 bits with one zero":
            return QuantizedWeight(eight, 8, group, part(wide), 127)
        case "bitsandbytes int8":
            return QuantizedWeight(eight, 8, inputs, part(wide, 1), 128, factor=1 / 127)
        case "fp8":
            numbers = torch.randn(outputs, inputs, generator=draw).to(torch.float8_e4m3fn)
            numbers[0, :3] = torch.tensor([448.0, -(2**-9), 0.0]).to(torch.float8_e4m3fn)
            return QuantizedWeight(numbers, 8, group, part(wide))
    raise ValueError(name)


FORMS = [
    "q4_0", "q4_1", "q4_k", "awq", "gptq in another order", "mxfp4", "q8_0", "q5_0",
    "gptq of 8 bits", "bitsandbytes int8", "fp8", "squeezellm", "tables with all else",
]  # fmt: skip


Laid = PackedPanels | PackedExpandable | PackedTables


def packed(ops, weight: QuantizedWeight, dtype: torch.dtype = torch.float32) -> Laid:
    found = ops.pack_quantized(weight, dtype)
    assert isinstance(found, Laid)
    return found


def multiplied(laid_out: Laid, weight: QuantizedWeight) -> torch.Tensor:
    """Return the numbers that rows are multiplied by: some weights of 4 bits are rounded."""
    exact = weight.dequantize()
    return exact.bfloat16().float() if isinstance(laid_out, PackedExpandable) else exact


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expect_same_on_threads(ops, weight: Laid, x: torch.Tensor) -> None:
    """Check that each row is the same alone and with all others, by one thread and by two."""
    alone = torch.cat([ops.quantized_linear(row, weight, None) for row in x.split(1)])
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert torch.equal(ops.quantized_linear(x, weight, None), alone)
    finally:
        torch.set_num_threads(before)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, as a share of the largest number."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_the_packed_numbers_are_those_of_the_formula_to_the_bit(ops, name, shape):
    """Looked up, and by products with rows that are 1 at one input."""
    weight = form(name, *shape)
    ids = torch.cat((torch.arange(shape[0]), torch.tensor([5, 5])))
    for dtype in DTYPES:
        laid_out = packed(ops, weight, dtype)
        assert torch.equal(ops.quantized_embed(ids, laid_out), weight.dequantize()[ids])
        out = torch.full((shape[1], shape[0]), torch.nan)
        ops.quantized_linear(torch.eye(shape[1], dtype=dtype), laid_out, None, out)
        assert torch.equal(out.T, multiplied(laid_out, weight))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FORMS)
def test_products(ops, name, shape):
    """Within fp32's rounding of sums, also with x in bf16; the result goes into a wider tensor, and
    a row is the same to the bit by itself and with any others."""
    dtype = DTYPES[(FORMS.index(name) + SHAPES.index(shape)) % 2]  # each, in diagonals
    outputs, inputs, _ = shape
    weight = form(name, *shape)
    laid_out = packed(ops, weight, dtype)
    exact = multiplied(laid_out, weight).double()
    x, bias = numbers(1, max(ROWS), inputs, dtype=dtype), numbers(2, outputs, dtype=dtype)
    expected = x.double() @ exact.T + bias.double()
    alone = torch.cat([ops.quantized_linear(row, laid_out, bias) for row in x.split(1)])
    assert off(alone, expected) < (2e-6 if dtype is torch.float32 else 5e-3)
    for rows in ROWS:
        wide = torch.full((rows, outputs + 3), torch.nan)
        found = ops.quantized_linear(x[:rows], laid_out, bias, wide[:, 2:-1])
        assert found.data_ptr() == wide[:, 2:].data_ptr()
        assert wide[:, :2].isnan().all() and wide[:, -1:].isnan().all()
        assert off(found, expected[:rows]) < 4e-6  # sums in plain order, where there are no vectors
        assert torch.equal(ops.quantized_linear(x[:rows], laid_out, bias), alone[:rows])


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "awq"])
def test_sums_lose_little_by_what_is_added_to_codes(ops, name):
    """Where pairs are multiplied, each code counts 16 more: of inputs of one sign, sums are large,
    and most of them goes again."""
    weight = form(name, 40, 416, 32)
    x = (numbers(21, 20, 416).abs() + 3).bfloat16()
    out = torch.empty(20, 40)
    ops.quantized_linear(x, packed(ops, weight, torch.bfloat16), None, out)
    expected = x.double() @ weight.dequantize().double().T
    assert weight.scales is not None
    largest = x.double() @ (weight.scales.double().abs() * (16 + 16)).repeat_interleave(32, 1).T
    assert ((out - expected).abs() <= 32 * 2**-24 * largest).all()  # 32 additions of a group


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4, 6, 200, 300])
def test_a_row_is_the_same_on_any_number_of_threads(ops, rows, dtype):
    laid_out = packed(ops, form("awq", 420, 384, 64), dtype)
    expect_same_on_threads(ops, laid_out, numbers(3, rows, 384, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "inputs", "group"),
    [("q8_0", 16384, 32), ("awq", 2112, 64), ("q4_1", 2112, 32), ("q4_0", 1040, 8)],
)
def test_nor_does_it_depend_on_how_many_rows_a_cache_holds(ops, name, inputs, group):
    """Nor on where a row is cut into pieces, of which the last is short."""
    laid_out = packed(ops, form(name, 40, inputs, group), torch.bfloat16)
    x = numbers(14, 400, inputs, dtype=torch.bfloat16)
    alone = torch.cat([ops.quantized_linear(row, laid_out, None) for row in x.split(1)])
    for rows in (13, 14, 19, 20, 26, 33, 96, 111, 192, 193, 400):
        assert torch.equal(ops.quantized_linear(x[:rows], laid_out, None), alone[:rows])


@pytest.mark.parametrize("outputs", [1024, 1040])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("name", "group"), [("q4_1", 32), ("gptq in another order", 32), ("awq", 64)]
)
def test_a_row_of_a_prompt_is_the_same_in_any_company(ops, name, group, outputs, wide):
    """A prompt's outputs are more than a core's caches hold: on tiles they take another way."""
    rows, laid_out = 1100, packed(ops, form(name, outputs, 416, group), torch.bfloat16)
    x, bias = numbers(17, rows, 416, dtype=torch.bfloat16), numbers(18, outputs)
    dtype = torch.float32 if wide else torch.bfloat16

    def product(some: torch.Tensor) -> torch.Tensor:
        out = torch.empty((len(some), outputs), dtype=dtype)
        return ops.quantized_linear(some, laid_out, bias, out)

    few = torch.cat([product(some) for some in x.split(16)])
    for company in (rows, rows - 70):
        assert torch.equal(product(x[:company]), few[:company])


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "fp8"])
def test_numbers_of_any_size_are_added_alike_alone_and_in_company(ops, name):
    """Matrix tiles take subnormal numbers for zeros; where vectors add one row, they do too."""
    laid_out = packed(ops, form(name, 48, 320, 32), torch.bfloat16)
    sizes = 2.0 ** torch.arange(-132, 68, 20)[:, None]  # of rows: the smallest is subnormal
    rows = numbers(15, len(sizes), 320) * sizes
    mixed = numbers(16, len(sizes), 320) * sizes[torch.arange(320) % len(sizes), 0]
    x = torch.cat((rows, mixed)).bfloat16()
    alone = [ops.quantized_linear(row, laid_out, None, torch.empty(1, 48)) for row in x.split(1)]
    together = ops.quantized_linear(x, laid_out, None, torch.empty(len(x), 48))
    assert torch.equal(torch.cat(alone), together) and together.isfinite().all()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("inputs", [128, 192, 576, 608, 1024])
@pytest.mark.parametrize("name", ["awq", "w4a16", "nf4", "one group"])
def test_large_groups_of_4_bits_are_multiplied_like_an_expanded_checkpoint(ops, name, inputs, wide):
    """To the bit, on matrix tiles: `--quantization none` and this give the same text in bf16."""
    if not ops.tiles:
        pytest.skip("only tiles of AMX expand them")
    outputs, group = 96, inputs if name == "one group" else 64 if inputs % 128 else 128
    weight = form("q4_0" if name == "w4a16" else "awq", outputs, inputs, group)
    if name == "nf4":
        weight = replace(
            weight, zero=0, table=numbers(4, 16), scales=numbers(5, outputs, -(-inputs // group))
        )
    laid_out, bias = packed(ops, weight, torch.bfloat16), numbers(6, outputs).bfloat16()
    assert isinstance(laid_out, PackedExpandable)
    expanded = ops.pack_weight(weight.dequantize().bfloat16())
    x = numbers(7, 700, inputs).bfloat16()
    for rows in (*ROWS, 16, 17, 32, 700):
        expected = ops.linear(x[:rows], expanded, bias, wide)
        out = torch.full(expected.shape, torch.nan, dtype=expected.dtype)
        assert torch.equal(ops.quantized_linear(x[:rows], laid_out, bias, out), expected)


def test_small_groups_stay_exact(ops):
    for name, group in (("q4_0", 32), ("q4_1", 64), ("q8_0", 128)):
        laid_out = packed(ops, form(name, 32, 256, group), torch.bfloat16)
        assert isinstance(laid_out, PackedPanels)


def test_weights_with_a_factor_are_not_expanded(ops):
    """It multiplies sums, so that weights rounded to bf16 before it would be rounded twice."""
    weight = replace(form("q4_0", 32, 128, 128), factor=1 / 3)
    assert isinstance(packed(ops, weight, torch.bfloat16), PackedPanels)


def test_matrix_tiles_take_whole_steps_whatever_the_rows(ops):
    """K and groups decide, so that a row is multiplied in one way alone and in company."""
    for shape, whole in (((37, 96, 32), True), ((33, 48, 16), True), ((64, 200, 64), False)):
        assert ops.on_tiles(packed(ops, form("q8_0", *shape))) == (ops.tiles and whole)


def test_a_table_of_any_numbers_is_exact_in_fp32_and_rounded_to_bf16_at_most(ops):
    """Values like nf4's have more digits than bf16."""
    table = numbers(4, 16)
    weight = QuantizedWeight(form("q4_0", 40, 64, 32).codes, 4, 32, numbers(5, 40, 2), table=table)
    exact = weight.dequantize().double()
    for dtype, most in zip(DTYPES, (1e-6, 4e-3)):
        x = numbers(6, 9, 64, dtype=dtype)
        found = ops.quantized_linear(x, packed(ops, weight, dtype), None, torch.empty(9, 40))
        assert off(found, x.double() @ exact.T) < most


def test_a_factor_multiplies_the_weights_last(ops):
    """To the bit where a sum has one weight; else it multiplies their sum, before the bias."""
    for name in ("q4_1", "q8_0"):
        weight = replace(form(name, 40, 64, 16), factor=1 / 3)
        laid_out, bias = packed(ops, weight), numbers(7, 40)
        assert torch.equal(ops.quantized_embed(torch.arange(40), laid_out), weight.dequantize())
        assert torch.equal(
            ops.quantized_linear(torch.eye(64), laid_out, None), weight.dequantize().T
        )
        x = numbers(8, 9, 64)
        expected = x.double() @ weight.dequantize().double().T + bias
        assert off(ops.quantized_linear(x, laid_out, bias), expected) < 2e-6


def test_other_dtypes_get_expanded_weights(ops, monkeypatch):
    monkeypatch.setattr(quantized, "EXPANDED", 64 * 7)  # so that it takes several turns
    weight, x = form("awq", 40, 64, 64), numbers(8, 3, 64, dtype=torch.float64)
    bias = numbers(9, 40, dtype=torch.float64)
    for dtype in DTYPES:
        found = ops.quantized_linear(x, packed(ops, weight, dtype), bias)
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, x @ weight.dequantize().double().T + bias)
    found = ops.quantized_linear(x.float(), packed(ops, weight, torch.bfloat16), None)
    torch.testing.assert_close(found, x.float() @ weight.dequantize().T)


@pytest.mark.parametrize(
    "weight",
    [
        QuantizedWeight(torch.ones(8, 5, dtype=torch.uint8), 4, 10),  # K fills no word
        QuantizedWeight(torch.ones(8, 8, dtype=torch.uint8), 4, 4, torch.ones(8, 4)),  # nor a group
        QuantizedWeight(
            torch.ones(8, 8, dtype=torch.uint8), 4, 8, torch.ones(8, 2), 0, None, torch.ones(8, 16)
        ),
        QuantizedWeight(torch.ones(8, 8, dtype=torch.uint8), 8, 8, table=torch.ones(256)),
    ],
    ids=["K", "group", "tables of rows in groups", "table of 256"],
)
def test_what_the_kernels_do_not_take_is_computed_by_the_reference(ops, weight):
    assert ops.pack_quantized(weight, torch.float32) is weight
    x = numbers(10, 3, weight.shape[1])
    torch.testing.assert_close(ops.quantized_linear(x, weight, None), x @ weight.dequantize().T)
    ids = torch.tensor([3, 1])
    assert torch.equal(ops.quantized_embed(ids, weight), weight.dequantize()[ids])


def test_nothing_is_kept_twice_and_little_is_added(ops):
    """What the panel's last outputs lack is filled up; scales and codes lie as they came."""
    weight = form("q4_0", 64, 256, 32)
    laid_out = packed(ops, weight)
    assert isinstance(laid_out, PackedPanels)
    parts = 4 if ops.variant in ("neon", "portable") else 2  # bytes of a scale
    tables = 64 if laid_out.kind is Kind.TABLE4 else 0
    assert laid_out.num_bytes == weight.codes.nbytes + 64 * 8 * parts + tables
    assert laid_out.shape == weight.shape
    large = form("awq", 64, 256, 128)
    if ops.tiles:
        parts = 64 * 2 * (2 + 2)  # scales and zeros, of two groups
        assert packed(ops, large, torch.bfloat16).num_bytes == large.codes.nbytes + parts + 64


@pytest.mark.parametrize(("group", "dtype"), [(32, torch.float32), (64, torch.bfloat16)])
def test_a_launch_counts_the_bytes_that_are_read(ops, group, dtype):
    laid_out = packed(ops, form("q4_0", 64, 256, group), dtype)
    x, recorder = numbers(11, 3, 256, dtype=dtype), Recorder("full")
    seen: list = []
    recorder.subscribe(seen.extend)
    with recording(recorder):
        out = ops.quantized_linear(x, laid_out, None)
    recorder.flush()
    recorder.close()
    [launched] = [event for event in seen if isinstance(event, KernelLaunched)]
    assert launched.name == "linear_quantized"
    assert launched.num_bytes == laid_out.num_bytes + x.nbytes + out.nbytes
    assert launched.flops == 2 * 3 * 64 * 256


@pytest.mark.parametrize(("group", "dtype"), [(32, torch.float32), (64, torch.bfloat16)])
def test_a_tape_repeats_it_without_torch_between(ops, group, dtype):
    """Also with inputs in another order, which the kernel takes as they come."""
    laid_out = packed(ops, form("gptq in another order", 96, 64, group), dtype)
    x = numbers(12, 2, 64, dtype=dtype)
    tape = Tape(ops.replay, Arena())
    with tape.recording():
        out = ops.quantized_linear(x, laid_out, None)
    assert (tape.num_kernels, tape.num_torch_operations) == (1, 0)
    x.copy_(numbers(13, 2, 64))
    expected = ops.quantized_linear(x, laid_out, None)
    tape.play()
    assert torch.equal(out, expected)
