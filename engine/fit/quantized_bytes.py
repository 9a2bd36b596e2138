"""Count the bits that a weight takes in a quantized checkpoint, from what config.json says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_blocks import BLOCKS
from engine.models.formats.targets import HEAD_LAYER, LINEAR, groups_of, scheme_of

SCALE, ZERO = 16, 16  # bits that the engine keeps of each, for a group


class Width(NamedTuple):
    """Say what a weight of a matrix takes."""

    bits: float  # with its part of the scales
    formula: str
    says: str  # "4 bits in groups of 128"
    group: int = 1  # inputs that have one scale, of which a rank needs all


WidthOf = Callable[[str, tuple[str, ...]], Width | None]
"""Tells what a layer's weights take, by its name and its classes (targets.py); None: plain."""


class Quantized(NamedTuple):
    """Say how a checkpoint's matrices are kept."""

    says: str  # "gptq, 4 bits in groups of 128"
    width_of: WidthOf
    group: int = 1  # inputs that have one scale, in all matrices
    in_all: int | None = None  # bytes of all weights, where the file itself was read


def quantized(config: dict[str, Any]) -> Quantized | None:
    """Return how config.json says that its matrices are quantized.

    None: by a method that isn't served. Raises `ModelError`: its patterns can't be read.
    """
    method = str(config.get("quant_method", "")).replace("_", "-")
    if method == "compressed-tensors":
        return _compressed_tensors(config)
    if method == "gptq":
        return _gptq(config)
    if method == "awq":
        group = config.get("group_size", config.get("q_group_size", -1))
        bits = config.get("bits", config.get("w_bit", 4))
        width = _width(bits, group, bool(config.get("zero_point", True)))
        kept = config.get("modules_to_not_convert") or ()
        head = bool(config.get("lm_head"))
        return _all_but(method, width, lambda layer: any(one in layer for one in kept), head)
    fixed, kept = _fixed(method, config)
    if fixed is None:
        return None

    def is_kept(layer: str) -> bool:  # as transformers does
        return any(re.match(one, layer) or layer.endswith(one) for one in kept)

    return _all_but("fp8" if method == "fbgemm-fp8" else method, fixed, is_kept)


def _fixed(method: str, config: dict[str, Any]) -> tuple[Width | None, Sequence[str]]:
    """Return what methods with few choices keep of a weight, and which layers stay plain."""
    kept = config.get("modules_to_not_convert") or config.get("ignored_layers") or ()
    if method in ("fp8", "fbgemm-fp8"):
        block = config.get("weight_block_size") or (1, 1)
        return Width(8, "8", "8-bit floats", block[1]), kept
    if method == "mxfp4":
        return _width(4, 32, scale=32), kept
    if method == "squeezellm":
        return Width(4, "4", "4 bits and a table for each output"), kept
    if method == "bitsandbytes":
        kept = config.get("llm_int8_skip_modules") or ()
        return _width(8, None) if config.get("load_in_8bit") else _width(4, 64, scale=32), kept
    return None, kept


def _all_but(
    method: str, width: Width, is_kept: Callable[[str], bool], head: bool = False
) -> Quantized:
    """Say that all layers are quantized alike, but embeddings, those kept and maybe the head."""

    def width_of(layer: str, classes: tuple[str, ...]) -> Width | None:
        among = classes is LINEAR and (head or layer != HEAD_LAYER)
        return width if among and not is_kept(layer) else None

    return Quantized(f"{method}, {width.says}", width_of, width.group)


def _gptq(config: dict[str, Any]) -> Quantized:
    """Return what GPTQ's config says: `dynamic` leaves layers out, or gives them other bits."""
    usual = _gptq_width(config)
    dynamic = config.get("dynamic") or {}
    among = [
        one for part in config.get("modules_in_block_to_quantize") or () for one in _each(part)
    ]

    def width_of(layer: str, classes: tuple[str, ...]) -> Width | None:
        is_head = layer == HEAD_LAYER
        if classes is not LINEAR or (is_head and not config.get("lm_head")):
            return None
        if among and not is_head and not any(one in layer for one in among):
            return None
        for pattern, other in dynamic.items():
            if re.match(pattern.removeprefix("-:").removeprefix("+:"), layer):
                return None if pattern.startswith("-:") else _gptq_width({**config, **other})
        return usual

    groups = [usual.group, *(_gptq_width({**config, **other}).group for other in dynamic.values())]
    return Quantized(f"gptq, {usual.says}", width_of, math.lcm(*groups))


def _gptq_width(config: dict[str, Any]) -> Width:
    return _width(config.get("bits", 4), config.get("group_size", -1), not config.get("sym", True))


def _each(part: str | list[str]) -> list[str]:
    return [part] if isinstance(part, str) else part


def _compressed_tensors(config: dict[str, Any]) -> Quantized | None:
    widths = {
        id(group): _compressed_width(group["weights"])
        for group in groups_of(config)
        if group.get("weights")
    }
    if not widths:
        return None

    def width_of(layer: str, classes: tuple[str, ...]) -> Width | None:
        group = scheme_of(config, layer, classes)
        return None if group is None else widths.get(id(group))

    says = " and ".join(dict.fromkeys(width.says for width in widths.values()))
    group = math.lcm(*(width.group for width in widths.values()))
    return Quantized(f"compressed-tensors, {says}", width_of, group)


def _compressed_width(weights: dict[str, Any]) -> Width:
    bits, zeros = weights.get("num_bits", 8), not weights.get("symmetric", True)
    floats = bits == 4 and weights.get("type") == "float"  # whose scales become fp32
    return _width(bits, weights.get("group_size"), zeros, scale=32 if floats else SCALE)


def of_file(path: Path) -> Quantized:
    """Return what a GGUF file's weights take when they are loaded. Raises `ModelError`."""
    file = GGUF(path)
    kinds: dict[str, int] = {}
    in_all, group = 0.0, 1
    try:
        for info in file.tensors.values():
            block = BLOCKS[info.type]
            count = math.prod(info.shape)
            if not block.bits:
                in_all += 2 * count
                continue
            # K types keep scale and offset in 32 bits, the others in 16
            scales = {256: 32, 32: 16}[block.weights] * (1 if block.name in ONE_SCALE else 2)
            in_all += count * (_kept(block.bits) + scales / block.group) / 8
            kinds[block.name] = kinds.get(block.name, 0) + 1
            group = max(group, block.weights)
    finally:
        file.close()
    said = ", ".join(f"{count} × {name}" for name, count in kinds.items())
    return Quantized(f"GGUF, {said or 'plain numbers'}", no_width, group, round(in_all))


def no_width(layer: str, classes: tuple[str, ...]) -> None:
    """Stand in for widths where the bytes of all weights are known."""
    return


ONE_SCALE = ("Q4_0", "Q5_0", "Q8_0", "Q6_K")
"""Types of GGUF without an offset."""


def _width(bits: int, group: int | None, zeros: bool = False, scale: int = SCALE) -> Width:
    kept = _kept(bits)
    if group is None or group <= 0:
        return Width(kept, str(kept), f"{bits} bits, one scale a row")
    formula = f"{kept} + {scale} / {group}" + (f" + {ZERO} / {group}" if zeros else "")
    each = kept + scale / group + (ZERO / group if zeros else 0)
    return Width(each, formula, f"{bits} bits in groups of {group}", group)


def _kept(bits: int) -> int:
    """Return the bits that the engine keeps for a code."""
    return 4 if bits <= 4 else 8
