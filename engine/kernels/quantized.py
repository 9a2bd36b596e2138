"""Multiply by quantized weights in plain torch: the specification of every backend's kernels.

A backend lays the parts of a weight (`quantized_weight.py`) out as its kernels read them
(`pack_quantized`); the functions below run where there is no kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.kernels import int8_activations, torch_ops
from engine.kernels.quantized_weight import QuantizedWeight

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
MultiplyInFp32 = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Product = Callable[..., torch.Tensor]
"""A backend's product with plain weights, as in `torch_ops`."""

EXPANDED = 1 << 24
"""Weights of a large matrix that are expanded at once, at most: 64 MB in fp32."""


def pack_quantized(weight: QuantizedWeight, dtype: torch.dtype) -> QuantizedWeight:
    """Return the weight in the order of this backend's functions below: unchanged."""
    return weight


def quantized_linear(
    x: torch.Tensor,
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor | None = None,
    linear: Multiply = torch_ops.linear,
    logits: MultiplyInFp32 = torch_ops.logits,
) -> torch.Tensor:
    """Compute x Wᵀ + b with the weights rounded to x's dtype. x: [tokens, K] → [tokens, N].

    out: where to write the result, whose rows may be parts of longer ones; its dtype may be fp32
    where x has less. linear, logits: the backend's, which multiply with the expanded weights.
    Where the weight says so, activations are rounded to 8 bits (`int8_activations`).
    """
    rows, width = weight.shape
    if out is None:
        out = torch.empty(len(x), rows, dtype=x.dtype, device=x.device)
    if weight.x_group:
        return int8_activations.linear(x, weight, bias, out)
    step = max(1, EXPANDED // width)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        expanded = weight.rows(part).dequantize().to(x.dtype)
        some = None if bias is None else bias[part]
        if out.dtype is x.dtype:
            out[:, part] = linear(x, expanded, some)
        else:
            wide = logits(x, expanded)
            if some is None:
                out[:, part] = wide
            else:
                torch.add(wide, some, out=out[:, part])
    return out


def quantized_embed(ids: torch.Tensor, table: QuantizedWeight) -> torch.Tensor:
    """Return rows of a quantized table. ids: int64 [tokens] → fp32 [tokens, K]."""
    return table.rows(ids).dequantize()
