"""Find by which method a checkpoint is quantized, from what its folder says. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.models.errors import ModelError
from engine.models.formats.other_tools import in_served_words

SERVED = (
    "gptq", "awq", "squeezellm", "compressed-tensors", "fp8", "fbgemm_fp8", "bitsandbytes", "mxfp4",
)  # fmt: skip
"""Values of `quant_method`."""
BESIDE = (
    *("quantize_config.json", "quant_config.json", "quantization_config.json"),
    "hf_quant_config.json",
)
"""Where older checkpoints say it, beside config.json."""
LARGEST = 1 << 22  # bytes of such a file


def quantization_said(folder: Path, config: Any) -> dict[str, Any] | None:
    """Return what is said of quantized matrices, with `quant_method`; None: they are plain.

    config: config.json's quantization_config, or None. Raises `ModelError`.
    """
    if config is None:
        config = _beside(folder)
    elif hasattr(config, "to_dict"):
        config = config.to_dict()
    if config is None or _only_kv_scales(config):
        return None
    if not isinstance(config, dict):
        raise ModelError(f"the quantization_config of {folder} is {str(config)[:60]!r}.")
    return in_served_words(config)


def method_of(folder: Path, said: dict[str, Any]) -> str:
    """Return the method, one of `SERVED`. said: see above. Raises `ModelError`: it isn't served."""
    method = str(said.get("quant_method", "unknown")).replace("_", "-")
    method = {"fbgemm-fp8": "fbgemm_fp8"}.get(method, method)
    if method not in SERVED:
        raise ModelError(
            f"{folder} is quantized by {method}, which is not served; served are"
            f" {', '.join(SERVED)} and GGUF. Use the model's checkpoint in one of these, or its"
            " unquantized one."
        )
    return method


SAME = {"awq_marlin": "awq", "gptq_marlin": "gptq", "gptq_v2": "gptq", "fbgemm_fp8": "fp8",
        "modelopt": "fp8"}  # fmt: skip
"""Names by which other engines ask for a format together with a kernel."""


def check_wanted(wanted: str | None, found: str | None) -> None:
    """Check --quantization against the method that was found. Raises `ModelError`."""
    if wanted is None or wanted == "none":
        return
    method = SAME.get(wanted, wanted)
    if found is not None and method == SAME.get(found, found):
        return
    if found is None:
        raise ModelError(
            f"--quantization is {wanted}, but the checkpoint is not quantized: quantize it with"
            " `python -m engine.quantize`, or leave the option out."
        )
    raise ModelError(
        f"--quantization is {wanted}, but the checkpoint is {found}: leave the option out."
    )


def _only_kv_scales(config: Any) -> bool:
    """Return whether the config (of compressed-tensors) is about the KV cache only."""
    if not isinstance(config, dict):
        return False
    only = bool(config.get("kv_cache_scheme")) and not config.get("config_groups")
    return only and config.get("quant_method") != "modelopt"


def _beside(folder: Path) -> dict[str, Any] | None:
    """Read what older checkpoints say beside config.json, and add the method's name."""
    for name in BESIDE:
        path = folder / name
        if not path.is_file():
            continue
        try:
            config = json.loads(path.read_bytes()[:LARGEST])
        except (OSError, ValueError):
            config = None
        if not isinstance(config, dict):
            raise ModelError(f"{path} is not JSON; download it again.")
        if "quant_method" in config:
            return config
        if name == "hf_quant_config.json":
            said = config.get("quantization")
            if isinstance(said, dict) and said.get("quant_algo"):
                return {**said, "quant_method": "modelopt"}
            continue
        if "wbits" in config:
            method = "squeezellm"
        elif name == "quant_config.json":
            method = "awq"
        else:
            method = "gptq"
        return {**config, "quant_method": method}
    return None
