"""Read checkpoints of bitsandbytes: 4 bits by a table (nf4, fp4), or 8-bit integers.

4 bits: weight uint8 [N · K / 2, 1], the first of two inputs in the upper half; blocks of 64 over
the whole matrix share weight.absmax, which may itself be 8 bits by a table ("nested");
w = quant_map[code] · absmax. 8 bits: weight int8 [N, K], SCB [N]; w = weight · SCB · (1 / 127).
Dettmers et al., 2022 and 2023.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.fp8 import WIDER_ACTIVATIONS
from engine.models.formats.packed import FLOATS, Stored, wanted
from engine.models.weights import Found
from engine.rounding import ceil_div

STATES = (".weight.quant_state.bitsandbytes__nf4", ".weight.quant_state.bitsandbytes__fp4")
EIGHTH = float(torch.tensor(1.0) / 127)
BLOCKS = tuple(2**n for n in range(4, 13))


class BitsAndBytes:
    """Read matrices of bitsandbytes; see `Scheme`."""

    parts = frozenset(
        {
            *(".weight", ".weight.absmax", ".weight.quant_map", ".SCB", ".weight_format"),
            *(".weight.nested_absmax", ".weight.nested_quant_map", *STATES),
        }
    )
    marks = frozenset({".weight.absmax", ".SCB"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config."""
        self.notes: set[str] = set()
        activations = ""
        if config.get("load_in_8bit") or config.get("_load_in_8bit"):
            said, activations = "8-bit integers, one scale a row", WIDER_ACTIVATIONS
        else:
            said = f"4 bits, {config.get('bnb_4bit_quant_type', 'fp4')}"
            said += ", nested scales" if config.get("bnb_4bit_use_double_quant") else ""
        self.found = Found("bitsandbytes", said, activations)

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        if ".SCB" in stored:
            return Filling(_eight_bits(stored, shape))
        return Filling(_four_bits(stored, shape))


def _eight_bits(stored: Stored, shape: tuple[int, int]) -> QuantizedWeight:
    layout = stored.get(".weight_format")
    if layout is not None and bool(layout.any()):
        raise ModelError("its weight_format isn't 0: rows in an order for one kind of GPU")
    weight = wanted(stored, ".weight", (torch.int8,), shape)
    scales = wanted(stored, ".SCB", FLOATS, (shape[0],))
    codes = weight.view(torch.uint8) ^ 128
    return QuantizedWeight(codes, 8, shape[1], scales[:, None], 128, factor=EIGHTH)


def _four_bits(stored: Stored, shape: tuple[int, int]) -> QuantizedWeight:
    outputs, inputs = shape
    count = outputs * inputs
    state = _state(stored)
    block = state.get("blocksize")
    said = list(state.get("shape") or ())
    if type(block) is not int or block not in BLOCKS or said != [outputs, inputs] or inputs % 2:
        raise ModelError(f"its state says blocks of {block!r}, shape {state.get('shape')!r}")
    packed = stored.get(".weight")
    if packed is None or packed.nbytes * 2 != count:
        raise ModelError("its codes are missing, or not 4 bits for each weight")
    swapped = packed.contiguous().view(torch.uint8).reshape(outputs, inputs // 2)
    codes = swapped >> 4 | swapped << 4
    table = wanted(stored, ".weight.quant_map", FLOATS, (16,)).float()
    absmax = _absmax(stored, state, ceil_div(count, block))
    group = math.gcd(block, inputs)  # blocks may reach from row to row, groups don't
    starts = torch.arange(0, count, group) // block
    return QuantizedWeight(codes, 4, group, absmax[starts].view(outputs, -1), table=table)


def _absmax(stored: Stored, state: dict[str, Any], blocks: int) -> torch.Tensor:
    """Return the greatest magnitude of each block: fp32 [blocks]."""
    if ".weight.nested_absmax" not in stored:
        return wanted(stored, ".weight.absmax", FLOATS, (blocks,)).float()
    codes = wanted(stored, ".weight.absmax", (torch.uint8,), (blocks,))
    nested, offset = state.get("nested_blocksize", 0), state.get("nested_offset")
    sound = type(nested) is int and nested in BLOCKS
    if not sound or not isinstance(offset, float) or not math.isfinite(offset):
        raise ModelError(f"its state says nested blocks of {nested!r}, offset {offset!r}")
    wide = wanted(stored, ".weight.nested_absmax", FLOATS, (ceil_div(blocks, nested),)).float()
    table = wanted(stored, ".weight.nested_quant_map", FLOATS, (256,)).float()
    return table[codes.int()] * wide[torch.arange(blocks) // nested] + offset


def _state(stored: Stored) -> dict[str, Any]:
    """Read the JSON that lies beside a matrix as a tensor of bytes."""
    data = next((stored[name] for name in STATES if name in stored), None)
    if data is None or data.nbytes > 1 << 16:
        raise ModelError("its quant_state is missing")
    try:
        state = json.loads(bytes(data.contiguous().view(torch.uint8).tolist()))
    except ValueError:
        state = None
    if not isinstance(state, dict):
        raise ModelError("its quant_state is not JSON")
    return state
