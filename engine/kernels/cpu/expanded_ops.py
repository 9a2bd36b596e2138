"""Lay out weights of 4 bits that are expanded on the way to matrix tiles, and call their product.

expanded.h states the order in memory. Each number is rounded to bf16, as all of them are when a
checkpoint is expanded while loading: the result is that of `linear` with such weights, to the bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from struct import Struct

import torch

from engine.kernels.cpu.attention_ops import function
from engine.kernels.cpu.code_kinds import PACKED_AT_ONCE, PARTS, Kind, gated_order, parts_of
from engine.kernels.cpu.costs import quantized_cost, quantized_embed_cost
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.cpu.quantized_args import look_up_args, product_args
from engine.kernels.launch import launch
from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

_LINEAR = Struct("20q2dq").pack  # ExpandedArgs
_EMBED = Struct("23q2dq").pack  # ExpandedEmbedArgs
PANEL, TILE = 32, 16  # outputs
UNIT = 64  # places that lie in one group, at least


@dataclass(frozen=True, eq=False)
class PackedExpandable:
    """Hold a weight as expanded.h reads it. data: uint8 [panels, bytes of a panel]."""

    data: torch.Tensor
    shape: tuple[int, int]
    group: int
    unit: int
    parts: torch.dtype
    zeros: bool
    table: torch.Tensor  # fp32 [16], less the zero that all groups share
    inputs: torch.Tensor | None  # int32 [K]
    gated: bool  # the product is silu(first half of the outputs) * the others

    kind = Kind.TABLE4
    x_group = 0  # activations aren't rounded

    @property
    def num_bytes(self) -> int:
        others = 0 if self.inputs is None else self.inputs.nbytes
        return self.data.nbytes + self.table.nbytes + others

    @property
    def fields(self) -> tuple[float, ...]:
        """Return kind, part_type, zeros, offsets, gated, zero, factor, unit."""
        return self.kind, PARTS[self.parts], self.zeros, 0, self.gated, 0, 1, self.unit


def pack_expandable(weight: QuantizedWeight, gated: bool = False) -> PackedExpandable | None:
    """Lay out a weight; None if it isn't for this kernel.

    gated: a panel gets 16 of gate's outputs, which are the first half, and the same ones of up.
    """
    rows, inputs = weight.shape
    group = min(weight.group, inputs)
    if (
        weight.bits != 4
        or weight.offsets is not None
        or weight.x_group
        or weight.factor != 1.0  # it would round twice
        or (weight.table is not None and weight.table.dim() != 1)
        or (group < inputs and group % UNIT)
        or (gated and rows % PANEL)
    ):
        return None
    order = gated_order(rows, TILE) if gated else None
    unit = 2 * UNIT if inputs % (2 * UNIT) == 0 and group % (2 * UNIT) == 0 else UNIT
    scales, zeros, _ = parts_of(weight, 0)
    parts = torch.stack([scales] if zeros is None else [scales, zeros], dim=2)  # [N, groups, parts]
    units, panels = ceil_div(inputs, unit), ceil_div(rows, PANEL)
    head = PANEL * parts[0].numel() * parts.element_size()
    data = WEIGHTS.empty((panels, head + PANEL * units * unit // 2), torch.uint8)
    step = max(1, PACKED_AT_ONCE // (inputs * PANEL))
    for start in range(0, panels, step):
        target = data[start : start + step]
        some = slice(start * PANEL, (start + step) * PANEL)
        chosen = some if order is None else order[some]
        of_panels = _filled(parts[chosen], len(target)).permute(0, 2, 3, 1)
        target[:, :head] = of_panels.contiguous().view(len(target), -1).view(torch.uint8)
        codes = _filled(_ordered(weight.codes[chosen], units, unit), len(target))
        target[:, head:] = codes.transpose(1, 2).flatten(1)
    values = torch.arange(16.0) if weight.table is None else weight.table.float()
    zero = weight.zero if isinstance(weight.zero, int) else 0
    return PackedExpandable(
        data,
        (rows, inputs),
        group,
        unit,
        parts.dtype,
        zeros is not None,
        values - zero,
        None if weight.inputs is None else weight.inputs.int(),
        gated,
    )


def _filled(rows: torch.Tensor, panels: int) -> torch.Tensor:
    """Cut rows into whole panels, with zeros where rows are missing: [panels, PANEL, …]."""
    missing = panels * PANEL - len(rows)
    if missing:
        rows = torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
    return rows.view(panels, PANEL, *rows.shape[1:])


def _ordered(codes: torch.Tensor, units: int, unit: int) -> torch.Tensor:
    """Order each row's codes as its units lie: uint8 [N, K / 2] → [N, units, unit / 2]."""
    rows, width = codes.shape
    codes = torch.nn.functional.pad(codes, (0, units * unit // 2 - width))
    places = torch.stack((codes & 15, codes >> 4), dim=-1).view(rows, units, 4, unit // 4)
    nibbles = places.unbind(2)
    words = torch.stack((nibbles[0] | nibbles[1] << 4, nibbles[2] | nibbles[3] << 4), dim=-1)
    return words.flatten(2)


class ExpandedProduct:
    """Compute y = x Wᵀ + b with such weights, and look up their rows, by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        self._linear = function(library, "linear_expanded_amx")
        self._embed = function(library, "embed_expanded_amx")
        self._variant = variant

    def into(
        self,
        x: torch.Tensor,
        weight: PackedExpandable,
        bias: torch.Tensor | None,
        out: torch.Tensor,
    ) -> None:
        """Compute it. x: bf16 [tokens, K], out: [tokens, N], fp32 or bf16, as the bias.

        Of a gated weight the result is [tokens, N / 2], and there is no bias.
        """
        packed = _LINEAR(*product_args(x, weight, bias, out))
        name = "linear_quantized_gated" if weight.gated else "linear_quantized"
        launch(
            name, "native", self._linear, (packed,),
            quantized_cost, x, weight, out, self._variant,
        )  # fmt: skip

    def rows(self, ids: torch.Tensor, table: PackedExpandable) -> torch.Tensor:
        """Return rows of the weight, not rounded. ids: int64 [n] → fp32 [n, K]."""
        out = torch.empty((len(ids), table.shape[1]), dtype=torch.float32)
        packed = _EMBED(*look_up_args(ids, table, out))
        launch(
            "embed_quantized", "native", self._embed, (packed,), quantized_embed_cost, table, out
        )
        return out
