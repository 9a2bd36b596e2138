"""State what fills a model: the tensors of a checkpoint, quantized matrices among them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple, Protocol

import torch

from engine.layers.slot import Filling


class Found(NamedTuple):
    """Say how a checkpoint is quantized."""

    method: str  # as --quantization names it
    says: str  # for people: "4 bits, groups of 128"
    activations: str = ""  # what becomes of them, where that is worth saying

    def __str__(self) -> str:
        return f"{self.method}: {self.says}" + (f"; {self.activations}" if self.activations else "")


class StoredMatrix(Protocol):
    """Hold one quantized matrix as it lies in the file, until its shape is known."""

    @property
    def num_bytes(self) -> int: ...

    def filling(self, shape: tuple[int, int]) -> Filling:
        """Return the matrix. shape: (N, K). Raises `ModelError` where it has another one."""
        ...


class WeightSource(Protocol):
    """Give the weights of one model, each once, in the order in which they are read best."""

    @property
    def where(self) -> str:
        """Name the files in errors: "the checkpoint in /models/llama"."""
        ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def found(self) -> Found | None:
        """Say how they are quantized; None for plain numbers."""
        ...

    @property
    def notes(self) -> Set[str]:
        """Return lines for the log, once all is read."""
        ...

    @property
    def quantized(self) -> Set[str]:
        """Return the names that `tensors` gives as stored matrices: "model.….q_proj.weight"."""
        ...

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | StoredMatrix]]:
        """Yield (name as transformers has it, tensor on the CPU or stored matrix)."""
        ...
