"""Reads the weights of a checkpoint's folder, one tensor at a time.

Formats: safetensors (preferred), or PyTorch's `.bin` read with `weights_only=True`; one file, or
shards with an index. Files are mapped, not read, so that a tensor costs memory only while it is
copied to its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from engine.models.errors import ModelError

_COMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$")


def is_computed(name: str) -> bool:
    """Whether a tensor of this name is computed, not learned: old checkpoints store rotary
    frequencies and causal masks (GPT-2's `attn.bias`, GPT-NeoX's `attention.bias`)."""
    return _COMPUTED.search(name) is not None


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of one model."""

    folder: Path
    files: list[Path]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find the weight files. Raises `ModelError` where there are none, or where a shard is
        missing."""
        for single in ("model.safetensors", "pytorch_model.bin"):
            for name in (single, f"{single}.index.json"):
                path = folder / name
                if path.is_file():
                    files = _shards(path) if name.endswith(".json") else [path]
                    return cls(folder, files)
        others = sorted(folder.glob("*.safetensors"))
        if others:
            return cls(folder, others)
        raise ModelError(
            f"{folder} has no weights: no model.safetensors, no pytorch_model.bin, no index of"
            " shards."
        )

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor on the CPU) of every weight. Raises `ModelError` on a damaged file."""
        for file in self.files:
            read = _read_safetensors if file.suffix == ".safetensors" else _read_bin
            yield from read(file)


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        raise ModelError(f"{index} is not an index of shards; download it again.") from None
    files = [index.parent / name for name in sorted(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of {len(files)} weight files, first of them"
            f" {missing[0]}; download the model again."
        )
    return files


def _read_safetensors(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 – not a dict: it has no __iter__
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(file, error) from None


def _read_bin(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format of torch before 1.6 can't be mapped
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise _damaged(file, error) from None
    yield from tensors.items()


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"{file} can't be read ({reason}); download the model again.")
