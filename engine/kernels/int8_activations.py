"""Define products with activations rounded to 8 bits, in plain torch, and bound what they lose.

A row x of activations is cut into groups of inputs, as the weight's rows are or finer. Each group
has a scale of its own, and becomes whole numbers from −127 to 127:

    s = largest |x| / 127        q = x · (127 / largest), to the nearest whole number, ties to even

so that x differs from s · q by half of s at most. The weight is (code − zero) · scale + offset, and
a group's part of the product is made of sums of whole numbers, which are exact in any order:

    (scale · s) · Σ q (code − zero)  +  offset · (s · Σ q)

The parts are added in fp32, group after group, and a weight's factor multiplies their sum. So a
row's result is the same to the bit for any number of rows and of threads. Without the option
(`x_group` is 0) activations are not rounded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

LARGEST_CODE = 127
LARGEST_GROUP = 256
"""Whole numbers of a longer group's sum could need more than the 24 bits of an fp32."""
PART = 128
"""Inputs that share a scale where a longer group of the weight is cut."""
TINY = 2.0**-100
"""A group of activations without a number as large as this counts as zeros."""
EXPANDED = 1 << 22
"""Weights that are whole numbers in fp64 at once, at most: 32 MB."""


class RoundedRows(NamedTuple):
    """Hold rows in 8 bits. The last group may be short: groups = ⌈K / x_group⌉."""

    codes: torch.Tensor  # fp64 [tokens, groups, x_group], whole numbers; zeros fill the last group
    scales: torch.Tensor  # fp32 [tokens, groups]


def with_rounded_activations(weight: QuantizedWeight) -> QuantizedWeight:
    """Return the weight for products with activations in 8 bits; unchanged where there are none.

    There are none with a table's entries or 8-bit floats, which are no whole numbers.
    """
    if weight.table is not None or weight.codes.dtype is not torch.uint8:
        return weight
    if weight.group <= LARGEST_GROUP:
        return replace(weight, x_group=weight.group)
    if weight.group >= weight.shape[1] or weight.group % PART == 0:
        return replace(weight, x_group=PART)
    return weight


def rounded(x: torch.Tensor, weight: QuantizedWeight) -> RoundedRows:
    """Round activations x: [tokens, K] to 8 bits, in the order of the weight's codes.

    A group with a number that isn't finite has NaN as its scale.
    """
    x = x.float()
    if weight.inputs is not None:
        x = x[:, weight.inputs]
    grouped = _grouped(x, weight.x_group)
    largest = grouped.abs().amax(-1)
    finite = grouped.isfinite().all(-1)
    counts = finite & (largest >= TINY)
    times = torch.where(counts, LARGEST_CODE / largest, 0.0)
    codes = (grouped * times[..., None]).round()
    scales = torch.where(counts, largest / LARGEST_CODE, 0.0)
    scales = torch.where(finite, scales, torch.nan)
    return RoundedRows(torch.where(counts[..., None], codes, 0.0).double(), scales)


def linear(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, out: torch.Tensor
) -> torch.Tensor:
    """Compute x Wᵀ + b into `out` [tokens, N] as the formulas above say. x: [tokens, K]."""
    codes, scales = rounded(x, weight)
    sums = codes.sum(-1).float()
    step = max(1, EXPANDED // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        part = weight.rows(slice(start, start + step))
        values = _grouped(part.whole_numbers(), weight.x_group).double()
        total = torch.zeros(len(x), len(values), dtype=torch.float32, device=x.device)
        scale_of = _ones(part) if part.scales is None else part.scales.float()
        factor = torch.tensor(part.factor, dtype=torch.float32, device=x.device)
        for group in range(scales.shape[1]):
            whole = (codes[:, group] @ values[:, group].T).float()
            of_weight = group * weight.x_group // weight.group
            s = scales[:, group, None]
            total = _fused(scale_of[:, of_weight] * s, whole, total)
            if part.offsets is not None:
                offset = part.offsets[:, of_weight].float()
                total = _fused(offset, s * sums[:, group, None], total)
        added = torch.zeros(()) if bias is None else bias[start : start + step]
        out[:, start : start + step] = _fused(total, factor, added.to(x.device))
    return out


def most_lost(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """Bound how far rounding moves x Wᵀ: fp64 [tokens, N], half of s times Σ |w| of each group.

    Rounding of the sums in fp32 comes on top of it.
    """
    halves = rounded(x, weight).scales.double() * (0.5 + 2**-16) + TINY
    plain = replace(weight, inputs=None)
    sizes = _grouped(plain.dequantize().abs(), weight.x_group).double().sum(-1)
    return halves @ sizes.T


def _grouped(rows: torch.Tensor, group: int) -> torch.Tensor:
    """Cut rows [n, K] into groups: [n, groups, group], with zeros at the end."""
    missing = -rows.shape[1] % group
    return torch.nn.functional.pad(rows, (0, missing)).view(len(rows), -1, group)


def _ones(weight: QuantizedWeight) -> torch.Tensor:
    groups = ceil_div(weight.shape[1], weight.group)
    return torch.ones(weight.shape[0], groups, device=weight.codes.device)


def _fused(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Compute a · b + c in fp32 with one rounding (two, in one case of half a thousand million)."""
    return (a.double() * b.double() + c.double()).float()
