"""Read GPTQ's layout: codes packed down the inputs, groups of inputs, maybe in another order.

    qweight int32 [K · bits / 32, N]   scales [groups, N]   qzeros int32 [groups, N · bits / 32]
    g_idx int32 [K], the group of each input             w = (code − zero) · scale

Version 1 of the format, which most files have, stores zero − 1. With act-order (`desc_act`) inputs
were quantized from the most active on, so a group's inputs lie apart: here they are sorted once,
and the layer reads its inputs in that order. Frantar et al., 2022.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.packed import (
    FLOATS,
    WORDS,
    Stored,
    engine_codes,
    from_words,
    group_order,
    reordered,
    wanted,
)
from engine.models.formats.said import Said
from engine.models.weights import Found
from engine.rounding import ceil_div

BITS = (2, 3, 4, 8)


class GPTQ:
    """Read GPTQ matrices; see `Scheme`."""

    parts = frozenset({".qweight", ".qzeros", ".scales", ".g_idx"})
    marks = frozenset({".qweight"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config, or quantize_config.json of older checkpoints."""
        said = Said("GPTQ", config)
        self.bits = said.number("bits", BITS)
        self.group = said.group("group_size")
        self.symmetric = bool(config.get("sym", True))
        stored_as = config.get("checkpoint_format") or config.get("format") or "gptq"
        if stored_as not in ("gptq", "gptq_v2"):
            raise ModelError(
                f"this GPTQ checkpoint is packed as {stored_as!r}: gptq and gptq_v2 are read; use"
                " the model's checkpoint in one of these."
            )
        if config.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
            raise ModelError(
                f"this GPTQ checkpoint is packed in {config['pack_dtype']}, not int32."
            )
        self.first_zero = 0 if stored_as == "gptq_v2" else 1
        self.several = bool(config.get("dynamic"))  # layers may have bits and groups of their own
        self.notes: set[str] = set()
        order = ", act-order" if config.get("desc_act") else ""
        self.found = Found("gptq", f"{self.bits} bits, {said.groups(self.group)}{order}")

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        outputs, inputs = shape
        bits = self.bits
        if self.several and ".qweight" in stored:
            bits = len(stored[".qweight"]) * 32 // inputs
        qweight = wanted(stored, ".qweight", WORDS, (ceil_div(inputs * bits, 32), outputs))
        if bits not in BITS:
            raise ModelError(f"its codes have {bits} bits")
        group = self.group or inputs
        if self.several and ".scales" in stored:
            group = ceil_div(inputs, len(stored[".scales"]))
        group = min(group, inputs)
        groups = ceil_div(inputs, group)
        scales = wanted(stored, ".scales", FLOATS, (groups, outputs))
        codes, width = engine_codes(qweight.t(), bits, inputs)
        order = None
        if ".g_idx" in stored and groups > 1:
            g_idx = wanted(stored, ".g_idx", (torch.int32, torch.int64), (inputs,))
            order = group_order(g_idx, group, inputs)
        if order is not None:
            codes = reordered(codes, width, order)
        weight = QuantizedWeight(
            codes,
            width,
            group,
            scales.t().contiguous(),
            self._zero(stored, bits, groups, outputs),
            inputs=order,
        )
        return Filling(weight)

    def _zero(self, stored: Stored, bits: int, groups: int, outputs: int) -> torch.Tensor | int:
        """Return the zero points: int16 [N, groups], or the one that all have."""
        middle = 1 << (bits - 1)
        if self.symmetric and ".qzeros" not in stored:
            return middle
        words = ceil_div(outputs * bits, 32)
        qzeros = wanted(stored, ".qzeros", WORDS, (groups, words))
        zeros = from_words(qzeros, bits, outputs).to(torch.int16)
        first = int(zeros[0, 0])
        if bool((zeros == first).all()):
            if self.symmetric and first == middle and self.first_zero:
                self.notes.add(
                    "this GPTQ checkpoint says that its zero points are stored less 1, but they"
                    f" are all {middle}, the middle, as they are: so they are taken"
                )
                return first
            return first + self.first_zero
        if self.first_zero and bool((zeros == (1 << bits) - 1).any()):
            self.notes.add(
                "this GPTQ checkpoint stores zero points less 1 and has some of"
                f" {(1 << bits) - 1}: taken for {1 << bits}, but older tools may have meant 0"
            )
        return (zeros + self.first_zero).t().contiguous()
