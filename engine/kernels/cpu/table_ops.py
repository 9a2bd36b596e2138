"""Lay out weights whose rows have tables of their own, and call their product from Python.

`linear_tables.cpp` states the order in memory. Such rows have one group: its zero, scale and offset
are worked into the table, in the formula's own order, so the numbers are the same to the bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from struct import Struct

import torch

from engine.kernels.cpu.attention_ops import TYPES, function
from engine.kernels.cpu.costs import tables_cost
from engine.kernels.cpu.large_pages import WEIGHTS
from engine.kernels.launch import launch
from engine.kernels.quantized_weight import QuantizedWeight
from engine.rounding import ceil_div

_TABLES = Struct("13q").pack  # TablesArgs
PLACES = 8  # codes in a word
LOWER, UPPER = [0, 4, 1, 5], [2, 6, 3, 7]
"""Which places the halves of a word's four bytes have: `nibble` in codes.h."""


@dataclass(frozen=True, eq=False)
class PackedTables:
    """Hold a weight as linear_tables.cpp reads it: uint8 [N, bytes of a row], fp32 [N, 16]."""

    data: torch.Tensor
    table: torch.Tensor
    shape: tuple[int, int]

    gated = False  # there is no such product

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes + self.table.nbytes


def pack_tables(weight: QuantizedWeight, vector: int) -> PackedTables | None:
    """Lay out a weight for vectors of so many numbers; None if it isn't for this kernel."""
    rows, inputs = weight.shape
    one_group = weight.group >= inputs and weight.inputs is None
    if weight.bits != 4 or weight.table is None or weight.table.dim() != 2 or not one_group:
        return None
    length = PLACES * vector
    data = torch.zeros(rows, ceil_div(inputs, length) * length // 2, dtype=torch.uint8)
    data[:, : inputs // 2] = weight.codes
    codes = torch.stack((data & 15, data >> 4), dim=-1).view(rows, -1, PLACES, vector)
    whole = codes[:, :, LOWER] | codes[:, :, UPPER] << 4
    ordered = WEIGHTS.copy(whole.transpose(2, 3)).view(rows, -1)
    every = torch.arange(0, 16, 2, dtype=torch.uint8) * 17 + 16  # bytes of the codes 0 to 15
    entries = replace(weight, codes=every.expand(rows, 8).contiguous(), group=16)
    return PackedTables(ordered, entries.dequantize(), weight.shape)


def numbers_of(weight: PackedTables, vector: int, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of the weight as numbers. ids: int64 [n] → fp32 [n, K]."""
    found = weight.data[ids].view(len(ids), -1, vector, 4).transpose(2, 3)
    codes = torch.empty(len(ids), found.shape[1], PLACES, vector, dtype=torch.int64)
    codes[:, :, LOWER], codes[:, :, UPPER] = (found & 15).long(), (found >> 4).long()
    return weight.table[ids].gather(1, codes.flatten(1)[:, : weight.shape[1]])


class TableProduct:
    """Compute y = x Wᵀ + b with tables of rows by one loaded library."""

    def __init__(self, library: ctypes.PyDLL, variant: str) -> None:
        self._linear_tables = function(library, "linear_tables")
        self._variant = variant

    def into(
        self, x: torch.Tensor, weight: PackedTables, bias: torch.Tensor | None, out: torch.Tensor
    ) -> None:
        """Compute it. x: [tokens, K], out: [tokens, N], both in fp32 or bf16, as is the bias."""
        outputs, inputs = weight.shape
        packed = _TABLES(
            x.data_ptr(),
            weight.data.data_ptr(),
            weight.table.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            len(x),
            outputs,
            inputs,
            x.stride(0),
            out.stride(0),
            TYPES[x.dtype],
            0 if bias is None else TYPES[bias.dtype],
            TYPES[out.dtype],
        )
        launch(
            "linear_quantized", "native", self._linear_tables, (packed,),
            tables_cost, x, weight, out, self._variant,
        )  # fmt: skip
