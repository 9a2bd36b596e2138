"""Lay quantized weights out in panels, as linear_quantized.cpp and its like read them.

quantized.h states the order in memory, codes.h that of the codes within a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct

import torch

from engine.kernels.cpu.code_kinds import PARTS, Kind, gated_order, parts_of
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

_PACK_WORDS = Struct("14q").pack  # PackWordsArgs


@dataclass(frozen=True, eq=False)
class PackedPanels:
    """Hold a quantized weight as linear_quantized.cpp reads it.

    data: uint8 [panels, bytes of a panel]. zeros, offsets: whether groups have them.
    """

    data: torch.Tensor
    shape: tuple[int, int]
    kind: Kind
    group: int
    parts: torch.dtype
    zeros: bool
    offsets: bool
    zero: int  # of all groups, beside their own
    factor: float  # multiplies all weights last
    table: torch.Tensor | None  # fp32 [16]
    inputs: torch.Tensor | None  # int32 [K]
    x_group: int  # inputs that share a scale of activations in 8 bits; 0: these aren't rounded
    gated: bool  # the product is silu(first half of the outputs) * the others

    @property
    def num_bytes(self) -> int:
        others = (part.nbytes for part in (self.table, self.inputs) if part is not None)
        return self.data.nbytes + sum(others)

    @property
    def fields(self) -> tuple[float, ...]:
        """Return kind, part_type, zeros, offsets, gated, zero, factor."""
        parts = PARTS[self.parts], self.zeros, self.offsets
        return self.kind, *parts, self.gated, self.zero, self.factor


def pack_panels(
    weight: QuantizedWeight,
    vector: int,
    pairs: bool,
    pack_words: Callable[[bytes], int],
    gated: bool = False,
) -> PackedPanels | None:
    """Lay out a weight for vectors of so many outputs; None if it isn't for this kernel.

    pairs: whether vectors will multiply pairs of bf16 by it. pack_words: of the native library.
    gated: a panel gets a vector of gate's outputs, which are the first half, and the same of up.
    """
    rows, inputs = weight.shape
    panel = 2 * vector
    places = 8 if weight.bits == 4 else 4
    several = weight.group < inputs
    if inputs % places or (several and weight.group % places):
        return None
    if weight.table is not None and (weight.table.dim() == 2 or weight.bits == 8):
        return None
    if gated and rows % panel:
        return None
    order = gated_order(rows, vector) if gated else None
    kind, shift, table = _kind(weight, vector, pairs)
    scales, zeros, offsets = parts_of(weight, shift, vector > 4)
    parts = [part for part in (scales, zeros, offsets) if part is not None]
    group = min(weight.group, inputs)
    steps = group // places  # words of an output in a group
    head = panel * len(parts) * scales.element_size()
    record = head + steps * panel * 4
    size = ceil_div(inputs, group) * head + inputs // places * panel * 4
    data = WEIGHTS.empty((ceil_div(rows, panel), size), torch.uint8)
    _put_parts(data, [part if order is None else part[order] for part in parts], panel, record)
    codes = weight.codes.contiguous()
    flip = 0x88888888 if shift and weight.bits == 4 else 0  # 8 less, in two's complement
    minus = shift % 256 * 0x01010101 if weight.bits == 8 else 0
    fields = (
        *(codes.data_ptr(), 0 if order is None else order.data_ptr(), data.data_ptr()),
        *(rows, inputs // places, panel, len(data), size, steps, head, record),
        *(weight.bits == 4, flip, minus),
    )
    pack_words(_PACK_WORDS(*fields))
    return PackedPanels(
        data,
        (rows, inputs),
        kind,
        group,
        scales.dtype,
        zeros is not None,
        offsets is not None,
        0 if table is not None or isinstance(weight.zero, torch.Tensor) else weight.zero - shift,
        weight.factor,
        table,
        None if weight.inputs is None else weight.inputs.int(),
        weight.x_group,
        gated,
    )


def _kind(
    weight: QuantizedWeight, vector: int, pairs: bool
) -> tuple[Kind, int, torch.Tensor | None]:
    """Return the kind, what is subtracted from codes, and its table.

    Codes become signed where neither a table nor pairs of bf16 take them as they are. A zero that
    all groups share is worked into a table, and into codes of 8 bits where it fits.
    """
    zero = weight.zero if isinstance(weight.zero, int) else 0
    if weight.codes.dtype is not torch.uint8:
        return Kind.FLOAT8, 0, None
    if weight.bits == 8:
        fits = int(weight.codes.max()) - zero < 128 and zero <= 128
        return Kind.SIGNED8, zero if fits else 128, None
    if weight.table is None and pairs:
        return Kind.UNSIGNED4, 0, None
    if weight.table is not None or vector == 16:
        values = torch.arange(16.0) if weight.table is None else weight.table.float()
        return Kind.TABLE4, 0, values - zero
    return Kind.SIGNED4, 8, None


def _put_parts(data: torch.Tensor, parts: list[torch.Tensor], panel: int, record: int) -> None:
    """Write each group's parts at its beginning. parts: [rows, groups]; rows may be missing."""
    missing = len(data) * panel - len(parts[0])
    place = 0
    for part in parts:
        padded = torch.nn.functional.pad(part, (0, 0, 0, missing)) if missing else part
        of_panels = padded.view(len(data), panel, -1).transpose(1, 2).contiguous()
        raw = of_panels.view(torch.uint8)  # [panels, groups, bytes]
        for group in range(raw.shape[1]):
            at = group * record + place
            data[:, at : at + raw.shape[2]] = raw[:, group]
        place += raw.shape[2]
