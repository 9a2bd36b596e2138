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
TURNED_AT_ONCE = 1 << 17
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
        if outputs % 8 or inputs % group or inputs % 8:
            raise ModelError(f"it can't be in words of 8 codes and groups of {group} inputs")
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

    It does what `nibbles(_in_order(words).t())` does, in a tenth of the time: eight words of eight
    codes are turned in three rounds, each of which exchanges halves between pairs of words.
    """
    inputs, columns = words.shape
    codes = torch.empty(columns, 8, inputs // 8, dtype=torch.int32)
    step = max(1, TURNED_AT_ONCE // inputs)
    for start in range(0, columns, step):
        turned = words[:, start : start + step].unflatten(0, (-1, 8))
        for width, lower in ((1, 0x0F0F0F0F), (2, 0x00FF00FF), (4, 0x0000FFFF)):
            pairs = turned.unflatten(1, (-1, 2, width))
            first, second = pairs.unbind(2)
            bits = 4 * width
            turned = torch.stack(
                (
                    first & lower | (second & lower) << bits,
                    first >> bits & lower | second & ~lower,
                ),
                dim=2,
            ).flatten(1, 3)
        for output, nibble in enumerate(ORDER):
            codes[start : start + step, output] = turned[:, nibble].t()
    return codes.view(8 * columns, -1).view(torch.uint8)
