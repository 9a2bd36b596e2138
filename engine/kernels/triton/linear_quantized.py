"""Multiply by quantized weights on CUDA: which kernel computes how many rows.

Up to 4 rows read each code once (`skinny_quantized.py`); up to 64 in 16 bits are multiplied on
tensor cores as their tiles are expanded (`tiled_quantized.py`). For more, a part of the weight at a
time is expanded, and cuBLAS multiplies by it. None of them waits for the device or looks at what a
tensor holds, so all can be captured in graphs. What `code_words.py` can't lay out is expanded in
torch.
"""

from __future__ import annotations

import torch

from engine.kernels import quantized
from engine.kernels.quantized_weight import QuantizedWeight
from engine.kernels.signatures import Linear, Logits
from engine.kernels.triton.code_words import PackedWords
from engine.kernels.triton.expand import expand
from engine.kernels.triton.linear import linear, logits
from engine.kernels.triton.skinny_quantized import MAX_ROWS, skinny_quantized
from engine.kernels.triton.start import FLOATS
from engine.kernels.triton.tiled_quantized import MOST_ROWS, tiled_quantized


def quantized_linear(
    x: torch.Tensor,
    weight: PackedWords | QuantizedWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `quantized.quantized_linear`; weight: what `pack_quantized` made."""
    if isinstance(weight, QuantizedWeight):
        return quantized.quantized_linear(x, weight, bias, out, linear, logits)
    if out is None:
        out = torch.empty((len(x), weight.shape[0]), dtype=x.dtype, device=x.device)
    if len(x) == 0:
        return out
    x = x.contiguous() if weight.inputs is None else x.index_select(1, weight.inputs)
    ours = x.dtype in FLOATS and out.dtype in FLOATS and out.stride(1) == 1
    if ours and len(x) <= MAX_ROWS:
        skinny_quantized(x, weight, bias, out)
    elif ours and len(x) <= MOST_ROWS and x.dtype is not torch.float32:
        tiled_quantized(x, weight, bias, out)
    else:
        multiply_expanded(x, weight, bias, out, linear, logits)
    return out


def multiply_expanded(
    x: torch.Tensor,
    weight: PackedWords,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    linear: Linear,
    logits: Logits,
) -> None:
    """Multiply by some of the outputs' weights at a time, expanded in x's dtype.

    linear, logits: what multiplies by them.
    """
    outputs, inputs = weight.shape
    dtype = x.dtype if x.dtype in FLOATS else torch.float32
    step = max(1, quantized.EXPANDED // inputs)
    for first in range(0, outputs, step):
        part = slice(first, min(first + step, outputs))
        expanded = expand(weight, part, dtype, "expand_quantized").to(x.dtype)
        some = None if bias is None else bias[part]
        if out.dtype is x.dtype:
            out[:, part] = linear(x, expanded, some)
        else:
            wide = logits(x, expanded)
            if some is None:
                out[:, part] = wide
            else:
                torch.add(wide, some, out=out[:, part])


def quantized_embed(ids: torch.Tensor, table: PackedWords | QuantizedWeight) -> torch.Tensor:
    """Compute `quantized.quantized_embed`; a token that isn't in the table gives a row of NaN."""
    if isinstance(table, QuantizedWeight):
        return quantized.quantized_embed(ids, table)
    found = expand(table, ids.contiguous(), torch.float32, "embed_quantized")
    if table.inputs is None:
        return found
    ordered = torch.empty_like(found)
    ordered[:, table.inputs] = found
    return ordered
