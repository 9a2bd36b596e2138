"""Give the weights of a GGUF file: blocks of codes as they are, in the engine's own order."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from engine.kernels.quantized_weight import QuantizedWeight
from engine.layers.slot import Filling
from engine.models.errors import ModelError
from engine.models.formats import gguf_model
from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_blocks import BLOCKS, Block
from engine.models.formats.gguf_model import Tensor
from engine.models.weights import Found, StoredMatrix

ROWS = 1 << 22
"""Weights that are taken apart at once, at most, so that it costs little memory beside them."""


class GGUFWeights:
    """Hold the open files of one model."""

    def __init__(self, files: list[Path], config: dict[str, object]) -> None:
        """Open the files. config: of the folder made of them. Raises `ModelError`."""
        self._files = [GGUF(file) for file in files]
        self.where = f"the GGUF file {files[0]}"
        self._of = {name: file for file in self._files for name in file.tensors}
        infos = {name: file.tensors[name] for name, file in self._of.items()}
        self._tensors = gguf_model.checked_tensors(files[0], infos, config)
        self._blocks = {name: BLOCKS[infos[name].type] for name in self._tensors}
        self.notes: frozenset[str] = frozenset()
        self.num_bytes = sum(infos[name].num_bytes for name in self._tensors)

    @property
    def quantized(self) -> Set[str]:
        return {tensor.called for name, tensor in self._tensors.items() if self._blocks[name].bits}

    @property
    def found(self) -> Found | None:
        """Say which types the quantized matrices have; None if there are none."""
        names = [block.name for block in self._blocks.values() if block.bits]
        counts = {name: names.count(name) for name in dict.fromkeys(names)}
        said = ", ".join(
            f"{count} {'matrix' if count == 1 else 'matrices'} in {name}"
            for name, count in counts.items()
        )
        return Found("gguf", said) if said else None

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | StoredMatrix]]:
        """Yield (name as transformers has it, tensor or stored matrix)."""
        for name, tensor in self._tensors.items():
            file, block = self._of[name], self._blocks[name]
            if block.bits and len(tensor.shape) == 2:
                yield tensor.called, _Stored(file, name, tensor, block)
                continue
            numbers = file.array(name)
            if tensor.heads:
                numbers = gguf_model.halves(numbers, tensor.heads)
            yield tensor.called, torch.from_numpy(numbers)

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Stored(NamedTuple):
    """Hold one quantized tensor of the file."""

    file: GGUF
    name: str
    tensor: Tensor
    block: Block

    @property
    def num_bytes(self) -> int:
        return self.file.tensors[self.name].num_bytes

    def filling(self, shape: tuple[int, int]) -> Filling:
        """Return the matrix; see `StoredMatrix.filling`."""
        if self.tensor.shape != shape:
            raise ModelError(f"{self.name} has the shape {list(self.tensor.shape)}, not {shape}.")
        raw = self.file.raw(self.name)
        if self.tensor.heads:
            raw = gguf_model.halves(raw, self.tensor.heads)
        return Filling(to_weight(raw, self.block, shape))


def to_weight(raw: np.ndarray, block: Block, shape: tuple[int, int]) -> QuantizedWeight:
    """Take blocks apart. raw: uint8 [N, bytes of a row], shape: (N, K)."""
    rows, width = shape
    bits = 4 if block.bits == 4 else 8
    groups = width // block.group
    codes = np.empty((rows, width * bits // 8), np.uint8)
    scales: np.ndarray | None = None
    offsets: np.ndarray | None = None
    zero = 0
    assert block.parts is not None
    step = max(1, ROWS // width)
    for start in range(0, rows, step):
        some = raw[start : start + step]
        parts = block.parts(some.reshape(-1, block.num_bytes))
        found = parts.codes.reshape(len(some), width)
        if bits == 4:
            found = found[:, ::2] | found[:, 1::2] << 4
        codes[start : start + step] = found
        if scales is None:
            scales = np.empty((rows, groups), parts.scales.dtype)
            offsets = None if parts.offsets is None else np.empty_like(scales)
            zero = parts.zero
        scales[start : start + step] = parts.scales.reshape(len(some), groups)
        if offsets is not None and parts.offsets is not None:
            offsets[start : start + step] = parts.offsets.reshape(len(some), groups)
    assert scales is not None
    return QuantizedWeight(
        torch.from_numpy(codes),
        bits,
        block.group,
        torch.from_numpy(scales),
        zero,
        None if offsets is None else torch.from_numpy(offsets),
    )
