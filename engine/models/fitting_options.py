"""Refuse options that a model can't take, from what its folder says, before torch is imported.

Only what config.json says is judged here. What it leaves unsaid transformers completes, later;
then the worker checks the same with the same functions, and what depends on the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.config import POCKET_MODEL, ConfigError, EngineConfig
from engine.models.dividing import check_shares, not_divided
from engine.models.errors import ModelError
from engine.models.formats.gguf_files import gguf_files
from engine.models.formats.method import check_wanted, method_of, quantization_said
from engine.models.length import check_length
from engine.models.packaged import PACKAGED
from engine.models.registry import DIVIDED, NATIVE
from engine.rank_sizes import PLAIN_ONLY

ROUNDING = "--quantized-activations"
LARGEST = 1 << 26  # bytes of a config.json
DIVIDED_SIZES = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
)  # fmt: skip


def check_local(config: EngineConfig) -> None:
    """Check the options against the model, if it lies in a folder here. Raises as below."""
    if config.model not in PACKAGED:
        folder = Path(POCKET_MODEL if config.model == "pocket" else config.model).expanduser()
        if folder.exists():
            check_fitting(config, folder)


def check_fitting(config: EngineConfig, folder: Path) -> None:
    """Check the options against a model's folder, or its GGUF file.

    Raises `ModelError` or `ConfigError`.
    """
    if gguf_files(folder):
        check_quantized(config, "gguf")
        return
    try:
        said = json.loads((folder / "config.json").read_bytes()[:LARGEST])
    except (OSError, ValueError):
        return  # told by who needs it
    if not isinstance(said, dict):
        return
    names = said.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    quantized = quantization_said(folder, said.get("quantization_config"))
    method = None if quantized is None else method_of(folder, quantized)
    if name and config.tensor_parallel_size > 1:
        _check_divided(said, name, config.tensor_parallel_size)
    check_quantized(config, method)
    if method is not None and name:
        check_architecture(folder, method, name in NATIVE)
    length = said.get("max_position_embeddings")
    if type(length) is int and name in NATIVE and not _is_rescaled(said):
        check_length(config.max_model_len, length)


def check_quantized(config: EngineConfig, method: str | None) -> None:
    """Check the options for the method by which a checkpoint is quantized; None: it is plain.

    Raises `ModelError` or `ConfigError`.
    """
    check_wanted(config.quantization, method)
    if method == "gguf":
        return  # such a file may have plain weights: what it has is known when it is read
    expanded = method is None or config.quantization == "none"
    if config.load_format == "dummy" and not expanded:
        raise ModelError("random weights (--load-format dummy) are plain, not quantized.")
    if config.quantized_activations:
        check_rounding(config.device, method is not None, config.model)
    if config.tensor_parallel_size > 1 and not expanded:
        raise ModelError(PLAIN_ONLY)


def check_architecture(folder: Path, method: str, native: bool) -> None:
    """Raise `ModelError` for a quantized model that none of our own classes computes."""
    if not native:
        raise ModelError(
            f"{folder} is quantized ({method}) and its architecture is none of"
            f" {', '.join(NATIVE)}: use the model's unquantized checkpoint."
        )


def check_rounding(device: str, quantized: bool, name: str) -> None:
    """Raise `ConfigError` where no product could take activations in 8 bits.

    device: its kind, or what --device says. quantized: whether the checkpoint is. name: the
    model's.
    """
    if device not in ("cpu", "auto"):
        raise ConfigError(
            f"{ROUNDING} is for CPUs, and the device is {device}: leave the option out, or add"
            " --device cpu."
        )
    if not quantized:
        raise ConfigError(
            f"{ROUNDING} needs quantized weights, and those of {name} are plain numbers: leave the"
            " option out, or quantize the checkpoint (`python -m engine.quantize`)."
        )


def _check_divided(said: dict[str, Any], name: str, size: int) -> None:
    if name not in DIVIDED:
        raise not_divided(name, size)
    sizes: list[Any] = [said.get(key) for key in DIVIDED_SIZES]
    if all(type(one) is int and one > 0 for one in sizes):
        width, heads, kv_heads, columns = sizes
        check_shares(width, heads, kv_heads, columns, size)


def _is_rescaled(said: dict[str, Any]) -> bool:
    """Return whether rotary positions may reach another length than config.json says."""
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    return bool(rope) and not (isinstance(rope, dict) and rope.get("rope_type") == "default")
