"""Say in a served format's words what other tools say of matrices that they store alike.

    auto-round   GPTQ's or AWQ's layout, as its packing_format says; extra_config: layers by name
    modelopt     FP8 as in fp8.py, one scale a matrix or a row; ignore, exclude_modules: wildcards

What has another layout keeps its tool's name, which is refused.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from engine.models.errors import ModelError

GPTQ, AWQ = "auto_round:auto_gptq", "auto_round:auto_awq"
PLAIN_BITS = 16  # a layer of so many is left as it is
FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN")


def in_served_words(config: dict[str, Any]) -> dict[str, Any]:
    """Return a quantization_config that a scheme reads, or the same. Raises `ModelError`."""
    try:
        if config.get("quant_method") == "auto-round":
            return _auto_round(config)
        if config.get("quant_method") == "modelopt":
            return _modelopt(config)
    except (AttributeError, TypeError):
        raise ModelError(
            f"this {config['quant_method']} checkpoint says {str(config)[:60]!r} of itself."
        ) from None
    return config


def _auto_round(config: dict[str, Any]) -> dict[str, Any]:
    packed = config.get("packing_format", GPTQ)
    if packed not in (GPTQ, AWQ) or config.get("data_type", "int") != "int":
        said = packed if packed not in (GPTQ, AWQ) else config["data_type"]
        raise ModelError(
            f"this auto-round checkpoint is packed as {said!r}: {GPTQ} and {AWQ} are read; use the"
            " model's checkpoint in one of these."
        )
    layers: dict[str, dict[str, Any]] = config.get("extra_config") or {}
    plain = [name for name, one in layers.items() if one.get("bits", 0) >= PLAIN_BITS]
    head = "lm_head" in layers and "lm_head" not in plain
    if packed == AWQ:
        return {
            **config,
            "quant_method": "awq",
            "zero_point": not config.get("sym", True),
            "modules_to_not_convert": plain,
            "lm_head": head,
        }
    dynamic = {
        f"-:{re.escape(name)}$" if name in plain else f"+:{re.escape(name)}$": one
        for name, one in layers.items()
    }
    return {**config, "quant_method": "gptq", "dynamic": dynamic, "lm_head": head}


def _modelopt(config: dict[str, Any]) -> dict[str, Any]:
    algorithm = str(config.get("quant_algo")).upper()
    if algorithm not in FP8:
        return {**config, "quant_method": f"modelopt ({algorithm})"}
    kept = config.get("ignore") or config.get("exclude_modules") or []
    patterns = [fnmatch.translate(one) for one in kept]
    return {"quant_method": "fp8", "modules_to_not_convert": patterns}
