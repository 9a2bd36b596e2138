"""A quantized weight is what its one formula says, number by number, in all its forms."""

from __future__ import annotations

import pytest
import torch

from engine.kernels import kernels_for, quantized, torch_ops
from engine.kernels.quantized_weight import QuantizedWeight

ROWS, WIDTH = 6, 20


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def codes(bits: int) -> torch.Tensor:
    width = WIDTH // 2 if bits == 4 else WIDTH
    return torch.randint(
        0, 256, (ROWS, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits)
    )


def zeros(groups: int) -> torch.Tensor:
    return torch.arange(ROWS * groups, dtype=torch.int16).view(ROWS, groups)


FORMS = {
    "4 bits, one zero for all": QuantizedWeight(
        codes(4), 4, 4, numbers(ROWS, 5, dtype=torch.float16), zero=8
    ),
    "4 bits, zeros, a short last group": QuantizedWeight(
        codes(4), 4, 8, numbers(ROWS, 3), zeros(3)
    ),
    "4 bits, offsets, inputs in another order": QuantizedWeight(
        codes(4),
        4,
        10,
        numbers(ROWS, 2, dtype=torch.bfloat16),
        offsets=numbers(ROWS, 2),
        inputs=torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1)),
    ),
    "4 bits, a table for all": QuantizedWeight(codes(4), 4, 5, numbers(ROWS, 4), table=numbers(16)),
    "4 bits, a table for each row, no scales": QuantizedWeight(
        codes(4), 4, WIDTH, table=numbers(ROWS, 16)
    ),
    "8 bits, a scale for each row, a factor": QuantizedWeight(
        codes(8), 8, WIDTH, numbers(ROWS, 1), 128, factor=1 / 127
    ),
    "8 bits that are numbers themselves": QuantizedWeight(
        numbers(ROWS, WIDTH).to(torch.float8_e4m3fn), 8, 4, numbers(ROWS, 5)
    ),
}


def by_the_formula(w: QuantizedWeight) -> torch.Tensor:
    found = torch.empty(ROWS, WIDTH)
    for n in range(ROWS):
        for k in range(WIDTH):
            g = k // w.group
            if w.codes.dtype is not torch.uint8:
                value = w.codes[n, k].float()
            else:
                byte = int(w.codes[n, k // 2 if w.bits == 4 else k])
                code = byte if w.bits == 8 else byte >> 4 if k % 2 else byte & 15
                value = torch.tensor(float(code))
                if w.table is not None:
                    value = w.table[code] if w.table.dim() == 1 else w.table[n, code]
            value = value - (w.zero if isinstance(w.zero, int) else int(w.zero[n, g]))
            if w.scales is not None:
                value = value * w.scales[n, g].float()
            if w.offsets is not None:
                value = value + w.offsets[n, g].float()
            column = k if w.inputs is None else int(w.inputs[k])
            found[n, column] = value if w.factor == 1.0 else value * w.factor
    return found


@pytest.fixture(params=FORMS)
def weight(request) -> QuantizedWeight:
    return FORMS[request.param]


def test_it_stands_for_the_numbers_of_the_formula(weight):
    assert weight.shape == (ROWS, WIDTH)
    assert torch.equal(weight.dequantize(), by_the_formula(weight))


def test_some_of_its_rows_are_the_same_rows(weight):
    whole = weight.dequantize()
    assert torch.equal(weight.rows(slice(2, 5)).dequantize(), whole[2:5])
    ids = torch.tensor([3, 0, 3])
    assert torch.equal(quantized.quantized_embed(ids, weight), whole[ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_reference_multiplies_by_the_rounded_numbers(weight, dtype, monkeypatch):
    monkeypatch.setattr(quantized, "EXPANDED", 2 * WIDTH)  # so that it takes several turns
    x, bias = numbers(3, WIDTH, dtype=dtype), numbers(ROWS, dtype=dtype)
    dense = weight.dequantize().to(dtype)
    wanted = torch_ops.linear(x, dense, bias)
    torch.testing.assert_close(quantized.quantized_linear(x, weight, bias), wanted)
    wide = torch.zeros(3, ROWS + 4)
    quantized.quantized_linear(x, weight, None, wide[:, 2:-2])
    torch.testing.assert_close(wide[:, 2:-2], torch_ops.logits(x, dense))
    assert not wide[:, :2].any() and not wide[:, -2:].any()


def test_this_machines_kernels_compute_the_same(weight):
    kernels = kernels_for(torch.device("cpu"))
    packed = kernels.pack_quantized(weight, torch.float32)
    assert packed.shape == weight.shape and packed.num_bytes > 0
    x, whole = numbers(2, WIDTH), weight.dequantize()
    torch.testing.assert_close(kernels.quantized_linear(x, packed, None), x @ whole.T)
    ids = torch.tensor([1, 5])
    torch.testing.assert_close(kernels.quantized_embed(ids, packed), whole[ids])
