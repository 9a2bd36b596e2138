"""Define what a quantized weight is, and the numbers it stands for, in plain torch.

A weight matrix [N outputs, K inputs] is stored as small *codes*. Each row is cut into *groups* of
inputs that share a scale, and maybe a zero point or an offset:

    w[n, k] = (value(code[n, k]) − zero[n, g]) · scale[n, g] + offset[n, g]      g = k // group

`value` is the code itself, or its entry in a table. All formats that are read become this; which
parts they have is theirs. Computed in fp32 and in this order, `dequantize` gives to the bit the
numbers of each format's own library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Hold codes and what turns them into numbers. groups = ⌈K / group⌉, the last may be short.

    codes: uint8 [N, K / 2] of 4 bits (the lower half of a byte is the even input), uint8 [N, K] of
    8 bits, or float8_e4m3fn [N, K], whose value is the number itself. Everything else may be
    absent. Scales may be negative, zero or denormal; all floats are widened to fp32 before use.
    """

    codes: torch.Tensor
    bits: int  # 4 or 8
    group: int  # inputs that share a scale, 1 … K
    scales: torch.Tensor | None = None  # fp32, fp16 or bf16 [N, groups]
    zero: torch.Tensor | int = 0  # int16 [N, groups], or one for all
    offsets: torch.Tensor | None = None  # fp32, fp16 or bf16 [N, groups]
    table: torch.Tensor | None = None  # fp32 [2 ** bits], or [N, 2 ** bits] if each row has its own
    inputs: torch.Tensor | None = None  # int64 [K]: column k of the codes is for input inputs[k]
    factor: float = 1.0  # multiplies all weights last, after rounding to fp32
    x_group: int = 0  # inputs that share a scale when activations are rounded to 8 bits; 0: no

    @property
    def shape(self) -> tuple[int, int]:
        """Return (N, K)."""
        rows, width = self.codes.shape
        return rows, width * (2 if self.bits == 4 else 1)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """List all that it keeps in memory."""
        parts = self.codes, self.scales, self.zero, self.offsets, self.table, self.inputs
        return [part for part in parts if isinstance(part, torch.Tensor)]

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self.tensors)

    def to(self, device: torch.device) -> QuantizedWeight:
        """Return it on that device."""
        moved: dict[str, Any] = {
            field.name: part.to(device)
            for field in fields(self)
            if isinstance(part := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)

    def rows(self, chosen: torch.Tensor | slice) -> QuantizedWeight:
        """Return some rows: indices int64 [n], or a slice, which makes views."""

        def of(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part[chosen]

        return replace(
            self,
            codes=self.codes[chosen],
            scales=of(self.scales),
            zero=self.zero if isinstance(self.zero, int) else self.zero[chosen],
            offsets=of(self.offsets),
            table=self.table if self.table is None or self.table.dim() == 1 else of(self.table),
        )

    def dequantize(self) -> torch.Tensor:
        """Compute the numbers that it stands for: fp32 [N, K], inputs in the model's order."""
        rows, width = self.shape
        weight = self._values()
        if isinstance(self.zero, torch.Tensor):
            weight = weight.sub_(self._wide(self.zero))
        elif self.zero:
            weight = weight.sub_(self.zero)
        if self.scales is not None:
            weight = weight.mul_(self._wide(self.scales))
        if self.offsets is not None:
            weight = weight.add_(self._wide(self.offsets))
        if self.factor != 1.0:
            weight = weight.mul_(self.factor)
        if self.inputs is None:
            return weight
        ordered = torch.empty(rows, width, dtype=weight.dtype, device=weight.device)
        ordered[:, self.inputs] = weight
        return ordered

    def whole_numbers(self) -> torch.Tensor:
        """Return code − zero where no table is: fp32 [N, K], in the order of the codes."""
        zero = self._wide(self.zero) if isinstance(self.zero, torch.Tensor) else self.zero
        return self._values() - zero

    def _values(self) -> torch.Tensor:
        """Return value(code): fp32 [N, K]."""
        if self.codes.dtype is not torch.uint8:
            return self.codes.float()
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
        if self.table is None:
            return codes.float()
        if self.table.dim() == 1:
            return self.table.float()[codes.int()]
        return self.table.float().gather(1, codes.long())

    def _wide(self, part: torch.Tensor) -> torch.Tensor:
        """Widen one number a group to one a weight: [N, groups] → fp32 [N, K]."""
        return part.float().repeat_interleave(self.group, dim=1)[:, : self.shape[1]]


def alike(one: QuantizedWeight, other: QuantizedWeight) -> bool:
    """Return whether rows of both can stand in one weight."""

    def kind(of: QuantizedWeight) -> tuple[object, ...]:
        parts = of.scales, of.offsets
        return (
            (of.codes.dtype, of.shape[1], of.bits, of.group, of.factor, of.x_group),
            of.codes.device,
            [None if part is None else part.dtype for part in parts],
            of.zero if isinstance(of.zero, int) else None,
            None if of.table is None else of.table.dim(),
        )

    def equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    shared = one.table is None or one.table.dim() == 2 or equal(one.table, other.table)
    return kind(one) == kind(other) and equal(one.inputs, other.inputs) and shared


def joined(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Put weights that are `alike` one below the other."""
    first = weights[0]
    if len(weights) == 1:
        return first

    def whole(name: str) -> torch.Tensor | None:
        if getattr(first, name) is None:
            return None
        return torch.cat([getattr(weight, name) for weight in weights])

    codes = whole("codes")
    assert codes is not None
    zero = whole("zero") if isinstance(first.zero, torch.Tensor) else first.zero
    table = whole("table") if first.table is not None and first.table.dim() == 2 else first.table
    assert zero is not None
    return replace(
        first, codes=codes, scales=whole("scales"), zero=zero, offsets=whole("offsets"), table=table
    )
