"""Replace the kernels in which a row's sums depend on its company: `--batch-invariant`.

Those are products, which are cut by the number of rows, and attention, which cuts contexts by the
number of rows and treats one token and several differently. Here each has one form for any number
of rows. All other kernels compute each row, or each number, by itself anyway: `BY_ITSELF` names
them. An operation that is new to the table belongs to one of the two, and a test holds that.
"""

from __future__ import annotations

from functools import partial

import torch

from engine.kernels import quantized, torch_ops
from engine.kernels.quantized_weight import QuantizedWeight
from engine.kernels.signatures import Replacements
from engine.kernels.triton import linear_quantized, paged_attention, rotary
from engine.kernels.triton.code_words import PackedWords
from engine.kernels.triton.start import FLOATS
from engine.kernels.triton.tiled import tiled

BY_ITSELF = frozenset(
    {
        *("write_kv", "copy_blocks", "take_drawn", "take_inputs", "hand_out"),  # copies
        *("pack_weight", "pack_quantized", "pack_quantized_gated", "embed", "quantized_embed"),
        *("angles", "rotate", "silu_and_mul", "relu", "mask_logits"),  # number by number
        *("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"),  # a program for each row
        *("greatest", "draw", "draw_allowed"),  # pieces of a row, cut by the vocabulary
        *("name", "why", "reads_lengths", "keeps_sums"),  # which compute nothing
    }
)
"""Entries of the `Kernels` table in which no row's result depends on another row."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wide: bool = False
) -> torch.Tensor:
    """Compute `torch_ops.linear`; wide: in fp32."""
    if _takes(x, weight, bias):
        return tiled(x, weight, bias, torch.float32 if wide else None)
    return torch.cat([torch_ops.linear(row, weight, bias) for row in x.split(1)])


def logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute `torch_ops.logits`."""
    if _takes(x, weight, None):
        return tiled(x, weight, dtype=torch.float32)
    return torch.cat([torch_ops.logits(row, weight) for row in x.split(1)])


def quantized_linear(
    x: torch.Tensor,
    weight: PackedWords | QuantizedWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `quantized.quantized_linear`: weights are expanded, then multiplied, at any number of
    rows."""
    if isinstance(weight, QuantizedWeight):
        return quantized.quantized_linear(x, weight, bias, out, linear, logits)
    if out is None:
        out = torch.empty((len(x), weight.shape[0]), dtype=x.dtype, device=x.device)
    if len(x):
        ordered = x if weight.inputs is None else x.index_select(1, weight.inputs)
        linear_quantized.multiply_expanded(ordered, weight, bias, out, linear, logits)
    return out


def operations() -> Replacements:
    """Return the entries of the `Kernels` table that differ."""
    attend = partial(paged_attention.paged_attention, as_prompts=True)
    return {
        "linear": linear,
        "logits": logits,
        "quantized_linear": quantized_linear,
        "paged_attention": attend,
        "qkv_attention": partial(rotary.qkv_attention, attend=attend),
        "wants_lengths": lambda lengths, contexts: False,
        "few_rows": None,
        "pack_gated": None,
        "linear_gated": None,
    }


def _takes(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Return whether the kernel takes these; torch multiplies one row at a time otherwise."""
    there = [tensor for tensor in (weight, bias) if tensor is not None]
    return x.dtype in FLOATS and all(
        tensor.dtype == x.dtype and tensor.is_contiguous() for tensor in there
    )
