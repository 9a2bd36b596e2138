"""Count the bits that a weight takes in a quantized checkpoint, from what config.json says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_blocks import BLOCKS

MATRICES = ("attention", "feed-forward", "projections")
"""Parts of the parameters that quantizing changes."""
HEAD = "lm_head"
SCALE, ZERO = 16, 16  # bits that the engine keeps of each, for a group


class Quantized(NamedTuple):
    """Say how a checkpoint's matrices are kept."""

    says: str  # "gptq, 4 bits in groups of 128"
    bits: float  # of a weight, with its part of the scales
    formula: str  # of the bits
    in_all: int | None = None  # bytes of all weights, where the file itself was read
    group: int = 1  # inputs that have one scale, of which a rank needs all
    head: bool = False  # the head is quantized, too: a matrix of its own, whatever is tied


def quantized(config: dict[str, Any]) -> Quantized | None:
    """Return how config.json says that its matrices are quantized.

    None: by a method that isn't served.
    """
    method = str(config.get("quant_method", "")).replace("_", "-")
    if method in ("fp8", "fbgemm-fp8"):
        block = config.get("weight_block_size") or (1, 1)
        return Quantized("fp8, 8-bit floats", 8, "8", group=block[1])
    if method == "mxfp4":
        return _of(method, 4, 32, zeros=False, scale=32)
    if method == "squeezellm":
        return Quantized("squeezellm, 4 bits and a table for each output", 4, "4")
    if method == "bitsandbytes":
        if config.get("load_in_8bit"):
            return _of(method, 8, None, zeros=False)
        return _of(method, 4, 64, zeros=False, scale=32)
    if method == "gptq":
        group, zeros = config.get("group_size", -1), not config.get("sym", True)
        return _of(method, config.get("bits", 4), group, zeros, head=bool(config.get("lm_head")))
    if method == "awq":
        group = config.get("group_size", config.get("q_group_size", -1))
        zeros, bits = config.get("zero_point", True), config.get("bits", config.get("w_bit", 4))
        return _of(method, bits, group, zeros, head=bool(config.get("lm_head")))
    if method == "compressed-tensors":
        groups = [one for one in (config.get("config_groups") or {}).values() if one]
        weights = [one.get("weights") or {} for one in groups]
        if weights:
            of = weights[0]
            zeros = not of.get("symmetric", True)
            # a head is a Linear to compressed-tensors, unless its name is ignored
            targets = [name for one in groups for name in one.get("targets") or ()]
            head = any(name == "Linear" or HEAD in str(name) for name in targets)
            head = head and not any(HEAD in str(name) for name in config.get("ignore") or ())
            return _of(method, of.get("num_bits", 8), of.get("group_size"), zeros, head=head)
    return None


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
            in_all += count * (_width(block.bits) + scales / block.group) / 8
            kinds[block.name] = kinds.get(block.name, 0) + 1
            group = max(group, block.weights)
    finally:
        file.close()
    said = ", ".join(f"{count} × {name}" for name, count in kinds.items())
    return Quantized(f"GGUF, {said or 'plain numbers'}", 0, "", round(in_all), group)


ONE_SCALE = ("Q4_0", "Q5_0", "Q8_0", "Q6_K")
"""Types of GGUF without an offset."""


def _of(
    method: str,
    bits: int,
    group: int | None,
    zeros: bool,
    scale: int = SCALE,
    head: bool = False,
) -> Quantized:
    width = _width(bits)
    if group is None or group <= 0:
        said = f"{method}, {bits} bits, one scale a row"
        return Quantized(said, width, str(width), head=head)
    formula = f"{width} + {scale} / {group}" + (f" + {ZERO} / {group}" if zeros else "")
    each = width + scale / group + (ZERO / group if zeros else 0)
    said = f"{method}, {bits} bits in groups of {group}"
    return Quantized(said, each, formula, group=group, head=head)


def _width(bits: int) -> int:
    """Return the bits that the engine keeps for a code."""
    return 4 if bits <= 4 else 8
