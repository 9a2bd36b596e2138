"""Check the products with quantized weights against float64, as `kernel_checks.py` does others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from engine.kernels import Kernels
from engine.kernels.quantized_weight import QuantizedWeight

GROUP = 32
ROWS = {"few rows": 3, "some rows": 17, "many rows": 70}
Forms = dict[str, QuantizedWeight]


def quantized_errors(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    error: Callable[[torch.Tensor, torch.Tensor], float],
) -> Iterator[tuple[str, float]]:
    """Yield (what was computed, its error) for each kind of codes and number of rows.

    error: of a result, beside the exact one.
    """
    inputs, outputs = (96, 5) if device.type == "cpu" else (1536, 701)
    for name, weight in _forms(outputs, inputs, device).items():
        packed, exact = kernels.pack_quantized(weight, dtype), weight.dequantize().double()
        for some, rows in ROWS.items():
            x = (torch.randn(rows, inputs, device=device) / inputs**0.5).to(dtype)
            found = kernels.quantized_linear(x, packed, None)
            yield f"quantized {name}, {some}", error(found, x.double() @ exact.T)
        ids = torch.tensor([outputs - 1, 0], device=device)
        yield (
            f"quantized {name}, looked up",
            error(kernels.quantized_embed(ids, packed), exact[ids]),
        )


def _forms(outputs: int, inputs: int, device: torch.device) -> Forms:
    def whole(below: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, below, shape, device=device)

    groups = inputs // GROUP
    scales, offsets = (torch.randn(outputs, groups, device=device).half() for _ in range(2))
    four, eight = whole(256, outputs, inputs // 2).byte(), whole(256, outputs, inputs).byte()
    zeros, table = whole(17, outputs, groups).short(), torch.randn(outputs, 16, device=device)
    numbers = torch.randn(outputs, inputs, device=device).to(torch.float8_e4m3fn)
    return {
        "4 bits": QuantizedWeight(four, 4, GROUP, scales, 8),
        "4 bits, zeros": QuantizedWeight(four, 4, GROUP, scales, zeros),
        "4 bits, offsets": QuantizedWeight(four, 4, GROUP, scales, offsets=offsets),
        "4 bits, a table": QuantizedWeight(four, 4, GROUP, scales, table=table[0]),
        "4 bits, tables of rows": QuantizedWeight(four, 4, inputs, table=table),
        "8 bits": QuantizedWeight(eight, 8, GROUP, scales, 128),
        "8 bits, fp8": QuantizedWeight(numbers, 8, GROUP, scales),
    }
