"""Read weights that are 8-bit floats (e4m3) with a scale for all, for each row, or for each block.

    weight float8_e4m3fn [N, K]   w = weight · scale
    weight_scale [] or [1]: one for all; [N, 1] or [N]: one a row
    weight_scale_inv [⌈N / 128⌉, ⌈K / 128⌉]: one a block; a factor too, in spite of its name

Scales of activations are left aside: activations stay in the model's own precision, which is more
exact than what the checkpoint asks for.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.packed import FLOATS, Stored, wanted
from engine.models.weights import Found
from engine.rounding import ceil_div

E4M3 = torch.float8_e4m3fn
POWERS = (torch.uint8, torch.float8_e8m0fnu)
NO_POWER = 255  # of e8m0: not a number
WIDER_ACTIVATIONS = "its activations are not quantized here, which is more exact"


class FP8:
    """Read FP8 matrices; see `Scheme`."""

    parts = frozenset(
        {".weight", ".weight_scale", ".weight_scale_inv", ".input_scale", ".activation_scale"}
    )
    marks = frozenset({".weight_scale", ".weight_scale_inv"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config of the methods fp8 and fbgemm_fp8."""
        block = config.get("weight_block_size")
        if block is not None and not is_block(block):
            raise ModelError(f"this FP8 checkpoint's weight_block_size is {block!r}.")
        self.block = tuple(block or (128, 128))
        self.notes: set[str] = set()
        of = f"blocks of {block[0]} × {block[1]}" if block else "a scale for each row or matrix"
        self.found = Found("fp8", f"8-bit floats, {of}", WIDER_ACTIVATIONS)

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        name = next(name for name in (".weight_scale_inv", ".weight_scale") if name in stored)
        return Filling(float_weight(stored, name, shape, self.block))


def float_weight(
    stored: Stored, scale_name: str, shape: tuple[int, int], block: tuple[int, ...]
) -> QuantizedWeight:
    """Make the matrix of 8-bit floats and their scales, of any of the shapes above."""
    outputs, inputs = shape
    weight = wanted(stored, ".weight", (E4M3,), shape)
    if bool((weight.view(torch.uint8) & 127 == 127).any()):
        raise ModelError("it has codes that stand for no number")
    height, width = block
    grid = ceil_div(outputs, height), ceil_div(inputs, width)
    shapes: list[tuple[int, ...]] = [(), (1,), (1, 1), (outputs,), (outputs, 1), grid]
    scale = powers(wanted(stored, scale_name, (*FLOATS, *POWERS), shapes))
    if scale.numel() == 1:
        return QuantizedWeight(weight, 8, inputs, scale.reshape(1, 1).expand(outputs, 1))
    if scale.numel() == outputs and tuple(scale.shape) != grid:
        return QuantizedWeight(weight, 8, inputs, scale.reshape(outputs, 1))
    rows = scale.repeat_interleave(height, dim=0)[:outputs]
    return QuantizedWeight(weight, 8, min(width, inputs), rows.contiguous())


def powers(scale: torch.Tensor) -> torch.Tensor:
    """Widen scales that are stored as powers of two, e8m0: 2 ** (byte − 127); others stay."""
    if scale.dtype not in POWERS:
        return scale
    exponents = scale.view(torch.uint8)
    if bool((exponents == NO_POWER).any()):
        raise ModelError("it has scales that stand for no number (e8m0 255)")
    bits = exponents.int() << 23  # where fp32 has its exponent
    return torch.where(exponents == 0, 1 << 22, bits).view(torch.float32)


def is_block(block: object) -> bool:
    """Return whether it is the height and width of the blocks that share a scale."""
    return (
        isinstance(block, list | tuple)
        and len(block) == 2
        and all(type(side) is int and 1 <= side <= 1 << 16 for side in block)
    )
