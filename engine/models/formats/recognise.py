"""Say what a model is if it is no checkpoint in transformers' format, before anything is read.

Asked by the tokenizer's loader and by the model's, so that both say the same. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from engine.models.errors import ModelError

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ADAPTER = ("adapter_model*", "adapter*.safetensors")


def refuse_other_formats(model: str) -> None:
    """Refuse a LoRA adapter and the like. Raises `ModelError`.

    model: a path or a hub id; a hub id passes, its files are judged by `refuse_by_names`.
    """
    path = Path(model).expanduser()
    try:
        if path.is_file():
            return
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    except OSError:
        return  # unreadable files are reported by those who need them
    base = _base_model(path) if "adapter_config.json" in names else ""
    refuse_by_names(model, names, base)


def refuse_by_names(model: str, names: Collection[str], base: str = "") -> None:
    """Refuse a folder whose files have these names if they are of another format.

    base: the model that a LoRA adapter was trained on, where that is known. Raises `ModelError`.
    """
    weights = [n for n in names if _is_any(n, WEIGHTS) and not _is_any(n, ADAPTER)]
    whole = weights and "config.json" in names
    if "adapter_config.json" in names and not whole:
        of = f" of {base}" if base else ""
        raise ModelError(
            f"{model} is a LoRA adapter{of}, not a whole model: adapters are not served. Merge it"
            " into its base model (peft: merge_and_unload, save_pretrained) and name that folder."
        )
    if not whole and any(n.lower().endswith(".gguf") for n in names):
        raise ModelError(
            f"{model} is a repository of GGUF files: download the one that you want, and give its"
            " path as the model."
        )
    if "config.json" not in names and ("params.json" in names or _has_pth(names)):
        raise ModelError(
            f"{model} is a checkpoint in its maker's own format: that is not read here. Use the"
            " model's checkpoint in transformers' format, a folder with config.json, a tokenizer"
            " and safetensors."
        )


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _has_pth(names: Collection[str]) -> bool:
    return any(fnmatch(name, "consolidated*.pth") for name in names)


def _base_model(folder: Path) -> str:
    try:
        said = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return said if isinstance(said, str) else ""
