"""Read MXFP4: 4-bit floats (e2m1), 32 inputs with one power of two as their scale.

gpt-oss stores a matrix as `NAME_blocks` uint8 [N, K / 32, 16] and `NAME_scales` uint8 [N, K / 32].
The lower half of a byte is the even input. OCP Microscaling formats, 2023.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.fp8 import POWERS, powers
from engine.models.formats.packed import Stored, wanted
from engine.models.weights import Found

HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 = torch.tensor([*HALF, *(-value for value in HALF)])
"""The number of each code; bit 3 is the sign."""
GROUP = 32


class MXFP4:
    """Read MXFP4 matrices of dense layers; see `Scheme`."""

    parts = frozenset({"_blocks", "_scales", ".weight_blocks", ".weight_scales"})
    marks = frozenset({"_blocks", ".weight_blocks"})

    def __init__(self, config: dict[str, Any]) -> None:
        self.notes: set[str] = set()
        self.found = Found("mxfp4", f"4-bit floats, groups of {GROUP}")

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        outputs, inputs = shape
        if inputs % GROUP:
            raise ModelError(f"its inputs are no whole groups of {GROUP}")
        prefix = ".weight_" if ".weight_blocks" in stored else "_"
        groups = inputs // GROUP
        shapes: list[tuple[int, ...]] = [(outputs, groups, GROUP // 2), (outputs, inputs // 2)]
        codes = wanted(stored, f"{prefix}blocks", (torch.uint8,), shapes)
        scales = wanted(stored, f"{prefix}scales", POWERS, (outputs, groups))
        return Filling(float4_weight(codes.reshape(outputs, -1), powers(scales), GROUP))


def float4_weight(codes: torch.Tensor, scales: torch.Tensor, group: int) -> QuantizedWeight:
    """Make the matrix of 4-bit floats. codes: uint8 [N, K / 2], scales: [N, K / group]."""
    return QuantizedWeight(codes, 4, group, scales, table=E2M1)
