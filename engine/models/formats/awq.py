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
from engine.models.formats.packed import FLOATS, WORDS, Stored, as_bytes, split, wanted
from engine.models.formats.said import Said
from engine.models.weights import Found

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
MIDDLE = 8
LOWER = 0x0F0F0F0F  # the lower nibble of each byte of a word
TURNED_AT_ONCE = 1 << 18
"""Words that are turned at once, about: what that takes stays in a core's second cache."""


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
        if outputs % 8 or inputs % group or inputs % 2:
            raise ModelError(f"it can't be in words of 8 outputs and groups of {group} inputs")
        groups = inputs // group
        qweight = wanted(stored, ".qweight", WORDS, (inputs, outputs // 8))
        scales = wanted(stored, ".scales", FLOATS, (groups, outputs))
        zero: torch.Tensor | int = MIDDLE
        if self.has_zeros:
            qzeros = wanted(stored, ".qzeros", WORDS, (groups, outputs // 8))
            zero = _in_order(qzeros).t().to(torch.int16).contiguous()
        return Filling(QuantizedWeight(_turned(qweight), 4, group, scales.t().contiguous(), zero))


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """Unpack words along the outputs: int32 [R, N / 8] → uint8 [R, N]."""
    codes = split(as_bytes(words))
    return codes.view(len(words), -1, 8)[:, :, torch.tensor(ORDER)].flatten(1)


def _turned(words: torch.Tensor) -> torch.Tensor:
    """Pack the codes of words along the inputs: int32 [K, N / 8] → uint8 [N, K / 2].

    It does what `nibbles(_in_order(words).t())` does, in a tenth of the time: codes aren't taken
    apart one by one, and what is worked on stays in a cache.
    """
    inputs, columns = words.shape
    codes = torch.empty(columns, 8, inputs // 2, dtype=torch.uint8)
    step = max(1, TURNED_AT_ONCE // inputs)
    for start in range(0, columns, step):
        even, odd = (words[first::2, start : start + step] for first in (0, 1))
        # Codes of two inputs meet in a byte: first those of the nibbles 0, 2, 4 and 6, then others.
        pairs = even & LOWER | (odd & LOWER) << 4, even >> 4 & LOWER | odd & ~LOWER
        whole = torch.stack(pairs, dim=2).view(torch.int64)[:, :, 0].t().contiguous()
        found = whole.view(torch.uint8).view(-1, inputs // 2, 8)
        for output, nibble in enumerate(ORDER):
            codes[start : start + step, output] = found[:, :, nibble // 2 + nibble % 2 * 4]
    return codes.view(8 * columns, -1)
