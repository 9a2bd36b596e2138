"""Fill the structs that describe a quantized product and a look-up (quantized.h)."""

from __future__ import annotations

from typing import Protocol

import torch

from engine.kernels.cpu.attention_ops import TYPES


class Laid(Protocol):
    """Describe a quantized weight as it was laid out."""

    @property
    def data(self) -> torch.Tensor: ...

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def group(self) -> int: ...

    @property
    def table(self) -> torch.Tensor | None: ...

    @property
    def inputs(self) -> torch.Tensor | None: ...

    @property
    def fields(self) -> tuple[float, ...]:
        """Return what the struct ends with, from the kind on."""
        ...


def product_args(
    x: torch.Tensor, weight: Laid, bias: torch.Tensor | None, out: torch.Tensor
) -> tuple[float, ...]:
    """Return the struct's fields for y = x Wᵀ + b."""
    return (
        x.data_ptr(),
        *_weight(weight),
        _address(bias),
        out.data_ptr(),
        _address(weight.inputs),
        len(x),
        *weight.shape,
        weight.group,
        x.stride(0),
        out.stride(0),
        TYPES[x.dtype],
        0 if bias is None else TYPES[bias.dtype],
        TYPES[out.dtype],
        *weight.fields,
    )


def look_up_args(ids: torch.Tensor, table: Laid, out: torch.Tensor) -> tuple[float, ...]:
    """Return the fields for looking rows up: ids, out, their number, and the table's struct."""
    return (
        ids.data_ptr(),
        out.data_ptr(),
        len(ids),
        0,
        *_weight(table),
        0,
        0,
        _address(table.inputs),
        0,
        *table.shape,
        table.group,
        *[0] * 5,
        *table.fields,
    )


def _weight(weight: Laid) -> tuple[int, int]:
    return weight.data.data_ptr(), _address(weight.table)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
