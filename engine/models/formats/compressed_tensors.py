"""Read checkpoints of compressed-tensors (llm-compressor and others write them).

    pack-quantized    weight_packed int32 [N, ⌈K · bits / 32⌉], codes less 2^(bits − 1)
    int-quantized     weight int8 [N, K]
    float-quantized   weight float8_e4m3fn [N, K]
    mxfp4-, nvfp4-pack-quantized   weight_packed uint8 [N, K / 2], 4-bit floats

each with weight_scale: one for all, for each row, or for each group of inputs. Which matrices have
which of these is read from the tensors themselves; config.json's patterns of names are not run.
Activations that the checkpoint would have quantized stay as they are, which is more exact, unless
--quantized-activations rounds them, in groups of the engine's own.
"""

from __future__ import annotations

from typing import Any

import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats.fp8 import (
    E4M3,
    POWERS,
    WIDER_ACTIVATIONS,
    float_weight,
    is_block,
    powers,
)
from engine.models.formats.mxfp4 import float4_weight
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
from engine.models.formats.targets import groups_of
from engine.models.weights import Found
from engine.rounding import ceil_div

FORMATS = (
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
    "mxfp4-pack-quantized",
    "nvfp4-pack-quantized",
)
COMPRESSED = ("compressed", "frozen")
"""Values of quantization_status. Those of 2024 say "frozen": that no scale will change any more."""
NVFP4_GROUP, MXFP4_GROUP = 16, 32


class CompressedTensors:
    """Read matrices of compressed-tensors; see `Scheme`."""

    parts = frozenset(
        f".{part}"
        for part in (
            *("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
            *("weight_g_idx", "weight_global_scale", "input_global_scale"),
            *("input_scale", "input_zero_point", "output_scale", "output_zero_point"),
        )
    )
    marks = frozenset({".weight_scale"})

    def __init__(self, config: dict[str, Any]) -> None:
        """Read quantization_config."""
        groups = groups_of(config)
        formats = {one.get("format") or config.get("format") for one in groups}
        formats = {one for one in formats if one} or {config.get("format")}
        for one in sorted(map(str, formats)):
            if one not in FORMATS:
                raise ModelError(
                    f"this compressed-tensors checkpoint is {one!r}; read are {', '.join(FORMATS)}."
                )
        sparse = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparse != "dense" or config.get("transform_config"):
            what = f"sparse ({sparse})" if sparse != "dense" else "rotated (transform_config)"
            raise ModelError(f"this compressed-tensors checkpoint is {what}: that is not served.")
        if config.get("quantization_status", "compressed") not in COMPRESSED:
            raise ModelError("this compressed-tensors checkpoint was never compressed.")
        weights = [one["weights"] for one in groups if isinstance(one.get("weights"), dict)]
        self.bits = sorted({one.get("num_bits") for one in weights} & set(range(1, 9)))
        self.symmetric = all(one.get("symmetric", True) for one in weights)
        blocks = [one["block_structure"] for one in weights if one.get("block_structure")]
        if not all(map(is_block, blocks)):
            raise ModelError(f"this compressed-tensors checkpoint's block_structure is {blocks!r}.")
        self.block = tuple(blocks[0]) if blocks else (128, 128)
        self.notes: set[str] = set()
        said = ", ".join(sorted(map(str, formats))) + f" of {', '.join(map(str, self.bits))} bits"
        asks = any(one.get("input_activations") for one in groups)
        self.found = Found("compressed-tensors", said, WIDER_ACTIVATIONS if asks else "")

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer; see `Scheme.filling`."""
        packed = stored.get(".weight_packed")
        if packed is not None:
            if ".weight" in stored:
                raise ModelError("it is stored twice, packed and as .weight; remove one")
            make = self._packed if packed.dtype is torch.int32 else self._floats
            return Filling(make(stored, shape))
        if ".weight" in stored and stored[".weight"].dtype is E4M3:
            return Filling(float_weight(stored, ".weight_scale", shape, self.block))
        return Filling(self._integers(stored, shape))

    def _packed(self, stored: Stored, shape: tuple[int, int]) -> QuantizedWeight:
        outputs, inputs = shape
        words = stored[".weight_packed"].shape[-1]
        bits = next((b for b in self.bits if ceil_div(inputs * b, 32) == words), None)
        if bits is None:
            raise ModelError(f"its rows have {words} words, which no {self.bits} bits of it fill")
        qweight = wanted(stored, ".weight_packed", WORDS, (outputs, words))
        said = stored.get(".weight_shape")
        if said is not None and said.tolist() != [outputs, inputs]:
            raise ModelError(f"its weight_shape is {said.tolist()[:4]}")
        scales, group = _scales(stored, shape)
        codes, width = engine_codes(qweight, bits, inputs)
        zero: torch.Tensor | int = 1 << (bits - 1)
        if ".weight_zero_point" in stored:
            zeros = wanted(
                stored,
                ".weight_zero_point",
                WORDS,
                (ceil_div(outputs * bits, 32), scales.shape[1]),
            )
            zero = from_words(zeros.t(), bits, outputs).t().to(torch.int16).contiguous()
        order = None
        if ".weight_g_idx" in stored:
            g_idx = wanted(stored, ".weight_g_idx", (torch.int32, torch.int64), (inputs,))
            if not bool((g_idx == -1).all()):  # -1: as the library marks that there is none
                order = group_order(g_idx, group, inputs)
        if order is not None:
            codes = reordered(codes, width, order)
        return QuantizedWeight(codes, width, group, scales, zero, inputs=order)

    def _integers(self, stored: Stored, shape: tuple[int, int]) -> QuantizedWeight:
        weight = wanted(stored, ".weight", (torch.int8,), shape)
        scales, group = _scales(stored, shape)
        zero: torch.Tensor | int = 128
        if ".weight_zero_point" in stored:
            shapes: list[tuple[int, ...]] = [(1,), (), tuple(scales.shape)]
            kinds = (torch.int8, torch.int32, torch.int64)
            zeros = wanted(stored, ".weight_zero_point", kinds, shapes)
            zero = (zeros.to(torch.int16) + 128).expand(scales.shape).contiguous()
        return QuantizedWeight(weight.view(torch.uint8) ^ 128, 8, group, scales, zero)

    def _floats(self, stored: Stored, shape: tuple[int, int]) -> QuantizedWeight:
        outputs, inputs = shape
        whole = stored.get(".weight_global_scale")
        group = MXFP4_GROUP if whole is None else NVFP4_GROUP
        if inputs % group:
            raise ModelError(f"its inputs are no whole groups of {group}")
        codes = wanted(stored, ".weight_packed", (torch.uint8,), (outputs, inputs // 2))
        kinds = POWERS if whole is None else (E4M3,)
        scales = wanted(stored, ".weight_scale", kinds, (outputs, inputs // group))
        if whole is None:
            return float4_weight(codes, powers(scales), group)
        whole = wanted(stored, ".weight_global_scale", FLOATS, [(), (1,), (1, 1)])
        return float4_weight(codes, scales.float() / whole.float().reshape(1, 1), group)


def _scales(stored: Stored, shape: tuple[int, int]) -> tuple[torch.Tensor, int]:
    """Return (scales [N, groups], inputs of a group)."""
    outputs, inputs = shape
    stored_scales = stored[".weight_scale"]
    groups = stored_scales.shape[1] if stored_scales.dim() == 2 else 1
    shapes: list[tuple[int, ...]] = [(), (1,), (outputs, groups)]
    scales = wanted(stored, ".weight_scale", FLOATS, shapes)
    if not 1 <= groups <= inputs:
        raise ModelError(f"its weight_scale has {groups} groups")
    group = ceil_div(inputs, groups)
    if ceil_div(inputs, group) != groups:
        raise ModelError(f"its {inputs} inputs can't be {groups} groups of one size")
    return scales.expand(outputs, groups).contiguous() if scales.dim() < 2 else scales, group
