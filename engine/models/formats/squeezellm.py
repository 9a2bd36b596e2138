"""Read SqueezeLLM's layout: a table of 16 numbers for each output, and maybe outliers beside it.

    qweight int32 [K · bits / 32, N]   lookup_table [N, 2^bits]   w[n, k] = lookup_table[n, code]
    rows, cols, vals: outliers in CSR, by output; full_rows [K, n]: whole rows of outliers, of the
    outputs full_row_indices

Outliers are added to the table's numbers. Kim et al., 2023.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling, Outliers
from engine.models.errors import ModelError
from engine.models.formats.packed import FLOATS, WORDS, Stored, engine_codes, wanted
from engine.models.formats.said import Said
from engine.models.weights import Found
from engine.rounding import ceil_div

INTEGERS = (torch.int32, torch.int64)


class SqueezeLLM:
    """Read matrices of SqueezeLLM; see `Scheme`."""

    parts = frozenset(
        {
            *(".qweight", ".lookup_table", ".rows", ".cols", ".vals"),
            *(".full_rows", ".full_row_indices", ".startrows"),
        }
    )
    marks = frozenset({".lookup_table"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config, or quant_config.json of the method's own checkpoints."""
        self.bits = Said("SqueezeLLM", config).number("bits wbits", (3, 4), 4)
        self.notes: set[str] = set()
        self.found = Found("squeezellm", f"{self.bits} bits, a table for each output")

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        outputs, inputs = shape
        words = ceil_div(inputs * self.bits, 32)
        qweight = wanted(stored, ".qweight", WORDS, (words, outputs))
        entries = 1 << self.bits
        table = wanted(stored, ".lookup_table", FLOATS, (outputs, entries)).float()
        codes, width = engine_codes(qweight.t(), self.bits, inputs)
        whole = torch.zeros(outputs, 1 << width)
        whole[:, :entries] = table
        return Filling(QuantizedWeight(codes, width, inputs, table=whole), _outliers(stored, shape))


def _outliers(stored: Stored, shape: tuple[int, int]) -> Outliers | None:
    """Return what is added to the table's numbers; None if nothing is."""
    outputs, inputs = shape
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # outputs, inputs, values
    if ".rows" in stored:
        rows = wanted(stored, ".rows", INTEGERS, (outputs + 1,)).long()
        count = stored[".vals"].numel() if ".vals" in stored else 0
        cols = wanted(stored, ".cols", INTEGERS, (count,)).long()
        counts = rows.diff()
        if int(rows[0]) != 0 or int(rows[-1]) != count or bool((counts < 0).any()):
            raise ModelError(f"its rows don't divide {count} outliers among {outputs} outputs")
        if count and not 0 <= int(cols.min()) <= int(cols.max()) < inputs:
            raise ModelError(f"its cols name inputs outside of 0 to {inputs - 1}")
        values = wanted(stored, ".vals", FLOATS, (count,)).float()
        found.append((torch.arange(outputs).repeat_interleave(counts), cols, values))
    if ".full_rows" in stored:
        among = stored[".full_rows"].shape[-1]
        full = wanted(stored, ".full_rows", FLOATS, (inputs, among)).float()
        chosen = wanted(stored, ".full_row_indices", INTEGERS, (among,)).long()
        if among and not 0 <= int(chosen.min()) <= int(chosen.max()) < outputs:
            raise ModelError(f"its full_row_indices name outputs outside of 0 to {outputs - 1}")
        each = torch.arange(inputs).repeat(among)
        found.append((chosen.repeat_interleave(inputs), each, full.t().flatten()))
    if not sum(len(values) for _, _, values in found):
        return None
    where, columns, values = (torch.cat(parts) for parts in zip(*found))
    order = torch.argsort(where, stable=True)
    counts = torch.bincount(where, minlength=outputs)
    return Outliers(counts, columns[order], values[order])
