"""Lay quantized weights out in panels, as linear_quantized.cpp and its like read them.

quantized.h states the order in memory, codes.h that of the codes within a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.kernels.cpu.code_kinds import PACKED_AT_ONCE, PARTS, Kind, gated_order, parts_of
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div


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
    weight: QuantizedWeight, vector: int, pairs: bool, gated: bool = False
) -> PackedPanels | None:
    """Lay out a weight for vectors of so many outputs; None if it isn't for this kernel.

    pairs: whether vectors will multiply pairs of bf16 by it. gated: a panel gets a vector of gate's
    outputs, which are the first half, and the same of up.
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
    stacked = [part for part in (scales, zeros, offsets) if part is not None]
    head = panel * len(stacked) * scales.element_size()
    group = min(weight.group, inputs)
    groups = ceil_div(inputs, group)
    size = groups * head + inputs // places * panel * 4
    data = WEIGHTS.empty((ceil_div(rows, panel), size), torch.uint8)
    step = max(1, PACKED_AT_ONCE // (inputs * panel))
    for start in range(0, len(data), step):
        some = slice(start * panel, (start + step) * panel)
        chosen = some if order is None else order[some]
        _fill(
            data[start : start + step],
            _shifted(weight.codes.view(torch.uint8)[chosen], weight.bits, shift),
            [part[chosen] for part in stacked],
            weight.bits,
            group,
            vector,
        )
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


def _fill(
    data: torch.Tensor,
    codes: torch.Tensor,
    parts: list[torch.Tensor],
    bits: int,
    group: int,
    vector: int,
) -> None:
    """Write some panels. codes: uint8 rows, parts: [rows, groups]; rows may be missing."""
    panels, panel = len(data), 2 * vector
    missing = panels * panel - len(codes)
    if missing:
        codes = torch.nn.functional.pad(codes, (0, 0, 0, missing))
        parts = [torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in parts]
    words = codes.view(torch.int32)
    if bits == 4:
        words = _paired(words)
    places = 32 // bits
    steps, count = group // places, words.shape[1]
    whole = count // steps
    words = words.view(panels, panel, count).transpose(1, 2)  # [panels, words of K, panel]
    parts = [part.view(panels, panel, -1).transpose(1, 2) for part in parts]
    head = sum(panel * part.element_size() for part in parts)
    record = head + steps * panel * 4
    for first, groups, length in ((0, whole, steps), (whole, 1, count - whole * steps)):
        if not groups or not length:
            continue
        at = first * record
        size = head + length * panel * 4
        target = data[:, at : at + groups * size].unflatten(1, (groups, size))
        place = 0
        for part in parts:
            end = place + panel * part.element_size()
            target[:, :, place:end].view(part.dtype).copy_(part[:, first : first + groups])
            place = end
        some = words[:, first * steps : first * steps + groups * length]
        of_codes = target[:, :, head:].view(torch.int32)
        of_codes.unflatten(2, (length, panel)).copy_(some.unflatten(1, (groups, length)))


def _paired(words: torch.Tensor) -> torch.Tensor:
    """Move the even places of eight into a word's lower half, the odd ones into its upper half."""
    even = _joined(words & 0x0F0F0F0F)
    return _joined((words >> 4) & 0x0F0F0F0F).bitwise_left_shift_(16).bitwise_or_(even)


def _joined(nibbles: torch.Tensor) -> torch.Tensor:
    """Join the lower halves of a word's four bytes into 16 bits."""
    pairs = nibbles.bitwise_or_(nibbles >> 4).bitwise_and_(0x00FF00FF)
    return pairs.bitwise_or_(pairs >> 8).bitwise_and_(0xFFFF)


def _shifted(codes: torch.Tensor, bits: int, shift: int) -> torch.Tensor:
    """Subtract a number from codes: in two's complement, of 4 bits where the number is 8."""
    if not shift:
        return codes
    return codes ^ 0x88 if bits == 4 else codes - shift
