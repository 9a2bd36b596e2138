"""Read AWQ's layout: codes packed along the outputs, in an order made for its GPU kernel.

    qweight int32 [K, N / 8]   qzeros int32 [groups, N / 8]   scales [groups, N]
    w = (code − zero) · scale

A word has eight outputs, and output j lies in nibble `ORDER[j]` of it. AWQ multiplies channels
before quantizing, and divides the layer before by the same: of that nothing remains to be done.
Lin et al., 2023.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.packed import FLOATS, WORDS, Stored, as_bytes, nibbles, split, wanted
from engine.models.formats.said import Said
from engine.models.weights import Found

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
MIDDLE = 8


class AWQ:
    """Read AWQ matrices; see `Scheme`."""

    parts = frozenset({".qweight", ".qzeros", ".scales"})
    marks = frozenset({".qweight"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config, or quant_config.json of older checkpoints."""
        said = Said("AWQ", config)
        said.number("bits w_bit", (4,))
        self.group = said.group("group_size q_group_size")
        version = str(config.get("version", "gemm")).lower()
        if version not in ("gemm", "exllama", "marlin"):  # the last two name kernels, not layouts
            raise ModelError(
                f"this AWQ checkpoint is packed as {version!r}: gemm is read; use the model's"
                " checkpoint packed so."
            )
        self.has_zeros = bool(config.get("zero_point", True))
        self.notes: set[str] = set()
        self.found = Found("awq", f"4 bits, {said.groups(self.group)}")

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        outputs, inputs = shape
        group = min(self.group or inputs, inputs)
        if outputs % 8 or inputs % group:
            raise ModelError(f"it can't be in words of 8 outputs and groups of {group} inputs")
        groups = inputs // group
        qweight = wanted(stored, ".qweight", WORDS, (inputs, outputs // 8))
        scales = wanted(stored, ".scales", FLOATS, (groups, outputs))
        zero: torch.Tensor | int = MIDDLE
        if self.has_zeros:
            qzeros = wanted(stored, ".qzeros", WORDS, (groups, outputs // 8))
            zero = _in_order(qzeros).t().to(torch.int16).contiguous()
        weight = QuantizedWeight(
            nibbles(_in_order(qweight).t()).contiguous(), 4, group, scales.t().contiguous(), zero
        )
        return Filling(weight)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """Unpack words along the outputs: int32 [R, N / 8] → uint8 [R, N]."""
    codes = split(as_bytes(words))
    return codes.view(len(words), -1, 8)[:, :, torch.tensor(ORDER)].flatten(1)
