"""Name how codes and the parts of groups are stored, for C++ (codes.h, quantized.h)."""

from __future__ import annotations

from enum import IntEnum

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

PARTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""enum PartType: what scales, zeros and offsets are stored in."""
PACKED_AT_ONCE = 1 << 20
"""Codes that are laid out at once, about: what that takes meanwhile, some four bytes for each, is
to stay in a core's second cache."""


class Kind(IntEnum):
    """Name how numbers are made of codes."""

    TABLE4 = 0
    SIGNED4 = 1
    UNSIGNED4 = 2
    SIGNED8 = 3
    FLOAT8 = 4

    @property
    def places(self) -> int:
        """Return how many codes a word of 32 bits holds."""
        return 8 if self <= Kind.UNSIGNED4 else 4


def gated_order(outputs: int, vector: int) -> torch.Tensor:
    """Return the outputs of gate above up in the order of gated panels: int64 [outputs].

    A panel has a vector of gate's and the same ones of up.
    """
    return torch.arange(outputs).view(2, -1, vector).transpose(0, 1).flatten()


def parts_of(
    weight: QuantizedWeight, shift: int, half_precision: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Return scales, zeros less `shift`, and offsets in one dtype, which holds each exactly.

    half_precision: whether fp16 may be it.
    """
    shape = weight.shape[0], ceil_div(weight.shape[1], weight.group)
    scales = torch.ones(shape, dtype=torch.bfloat16) if weight.scales is None else weight.scales
    offsets = weight.offsets
    same = offsets is None or offsets.dtype is scales.dtype
    dtype = scales.dtype if same and scales.dtype in PARTS else torch.float32
    if dtype is torch.float16 and not half_precision:
        dtype = torch.float32
    zero = weight.zero  # whole numbers up to 256
    zeros = (zero - shift).to(dtype) if isinstance(zero, torch.Tensor) else None
    return scales.to(dtype), zeros, None if offsets is None else offsets.to(dtype)
