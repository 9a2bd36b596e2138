"""Convert a GGUF file to a folder in transformers' format, in bf16.

Imports no torch, because it runs before that is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_folder import texts_of
from engine.models.formats.gguf_model import Tensor, checked_tensors, halves


def convert(source: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write config.json, the tokenizer and model.safetensors to `folder`.

    progress: called with (weights done, weights in all). Raises `ModelError`.
    """
    file = GGUF(source)
    try:
        texts = texts_of(file)
        tensors = checked_tensors(file.path, file.tensors, texts["config.json"])
        for name, content in texts.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        total = sum(math.prod(tensor.shape) for tensor in tensors.values())
        done = 0
        with (folder / "model.safetensors").open("wb") as to:
            to.write(_safetensors_header(tensors.values()))
            for name, tensor in tensors.items():
                numbers = file.array(name)
                if tensor.heads:
                    numbers = halves(numbers, tensor.heads)
                to.write(_to_bf16(numbers).tobytes())
                done += numbers.size
                progress(done, total)
    finally:
        file.close()


def _safetensors_header(tensors: Collection[Tensor]) -> bytes:
    """Return the length and the JSON that stand before the numbers of a safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 2 * math.prod(tensor.shape)
        header[tensor.called] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _to_bf16(numbers: np.ndarray) -> np.ndarray:
    """Round fp32 to the bits of the nearest bf16, ties to even: uint16."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
