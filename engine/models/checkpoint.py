"""Read the weights of a checkpoint's folder, one tensor at a time.

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

FLOATS = ("float32", "bfloat16", "float16", "float64")
"""What weights may be stored as."""

_KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Torch's names of the dtypes of safetensors."""

_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias)$|^sparse_threshold\."
)


def is_computed(name: str) -> bool:
    """Return whether a tensor of this name is computed, not learned.

    Old checkpoints store rotary frequencies and causal masks (GPT-2's `attn.bias`, GPT-NeoX's
    `attention.bias`), and SqueezeLLM's how many outliers there are.
    """
    return _COMPUTED.search(name) is not None


@dataclass(frozen=True)
class Checkpoint:
    """Hold the weight files of one model."""

    folder: Path
    files: list[Path]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find the weight files.

        Raises `ModelError` where there are none, or a shard is missing.
        """
        for single in ("model.safetensors", "pytorch_model.bin"):
            for name in (single, f"{single}.index.json"):
                path = folder / name
                if path.is_file():
                    files = _shards(path) if name.endswith(".json") else [path]
                    return cls(folder, files)
        others = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))
        if others and (others[0].suffix == ".safetensors" or len(others) == 1):
            return cls(folder, others)
        raise ModelError(
            f"{folder} has no weights: no model.safetensors, no pytorch_model.bin, no index of"
            " shards."
        )

    @property
    def where(self) -> str:
        return f"the checkpoint in {self.folder}"

    @property
    def found(self) -> None:
        return None

    @property
    def notes(self) -> frozenset[str]:
        return frozenset()

    @property
    def quantized(self) -> frozenset[str]:
        return frozenset()

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def contents(self) -> Iterator[tuple[str, str]]:
        """Return (name, dtype as torch names it) of every tensor.

        Only the headers of safetensors are read. Raises `ModelError` on a damaged file.
        """
        for file in self.files:
            if file.suffix == ".safetensors":
                yield from _safetensors_contents(file)
            else:
                for name, tensor in _read_bin(file):
                    yield name, str(tensor.dtype).removeprefix("torch.")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor on the CPU) of every weight.

        Raises `ModelError` on a damaged file.
        """
        for file in self.files:
            read = _read_safetensors if file.suffix == ".safetensors" else _read_bin
            yield from read(file)


def refuse_quantized_numbers(checkpoint: Checkpoint) -> None:
    """Refuse weights that are codes, not numbers, though config.json doesn't say so.

    Without their scales they would be served as if they were numbers. Raises `ModelError`.
    """
    for name, kind in checkpoint.contents():
        if name.endswith(".qweight"):
            what = f"{name} is packed as GPTQ and AWQ pack weights"
        elif kind not in FLOATS and not is_computed(name) and not _is_table(name, kind):
            what = f"weight {name} holds {kind} numbers"
        else:
            continue
        raise ModelError(
            f"{what}: a quantized checkpoint whose config.json does not say so; use the unquantized"
            " one."
        )


def _is_table(name: str, kind: str) -> bool:
    """Return whether it is positions, masks or the like, which some models store too."""
    return kind in ("int64", "bool") and not name.endswith(("weight", "bias"))


def _shards(index: Path) -> list[Path]:
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{index} is not an index of shards; download it again.") from None
    for name in names:  # file names come from the model's author: none may lead out of the folder
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(
                f"{index} names the file {name!r}, which is not in the model's folder; download the"
                " model again, from a source that you trust."
            )
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


def _safetensors_contents(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 – not a dict: it has no __iter__
                kind = tensors.get_slice(name).get_dtype()
                yield name, _KINDS.get(kind, kind)
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
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):  # some hold counts beside the weights
            yield name, tensor


def _damaged(file: Path, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"{file} can't be read ({reason}); download the model again.")
