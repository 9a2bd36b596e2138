"""State what a format's loader is, and find the loader of a checkpoint.

A quantized matrix is several tensors in the file: "….q_proj.qweight", "….q_proj.scales" and so on.
A `Scheme` says which names these are and makes a `QuantizedWeight` of them; `QuantizedCheckpoint`
gathers them, and gives everything else as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import NamedTuple, Protocol

import torch

from engine.layers.slot import Filling
from engine.models.checkpoint import Checkpoint
from engine.models.errors import ModelError
from engine.models.formats.packed import Stored
from engine.models.weights import Found, StoredMatrix


class Scheme(Protocol):
    """Read the matrices of one format."""

    @property
    def found(self) -> Found: ...

    @property
    def parts(self) -> Set[str]:
        """Return what follows the layer's name in the tensors of a matrix: ".qweight", …"""
        ...

    @property
    def notes(self) -> Set[str]:
        """Return lines for the log about what was read so far."""
        ...

    @property
    def marks(self) -> Set[str]:
        """Return those of them that only a quantized matrix has."""
        ...

    def filling(self, layer: str, stored: Stored, shape: tuple[int, int]) -> Filling:
        """Make the matrix of a layer. shape: (N, K).

        Raises `ModelError` that says what is wrong with it, without its name.
        """
        ...


class QuantizedCheckpoint:
    """Give the weights of a checkpoint with quantized matrices; see `WeightSource`."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme) -> None:
        """Read the names.

        Raises `ModelError` where no matrix is quantized, or one is stored plain, too.
        """
        self._checkpoint, self._scheme = checkpoint, scheme
        self.where, self.num_bytes = checkpoint.where, checkpoint.num_bytes
        self.found = scheme.found
        ends = sorted(scheme.parts, key=len, reverse=True)
        self._owner: dict[str, tuple[str, str]] = {}  # tensor → layer, part
        parts: dict[str, set[str]] = {}
        others: set[str] = set()
        for name, _ in checkpoint.contents():
            end = next((end for end in ends if name.endswith(end)), None)
            if end is not None:
                layer = name[: -len(end)]
                self._owner[name] = layer, end
                parts.setdefault(layer, set()).add(end)
            else:
                others.add(name)
        self._parts = {layer: of for layer, of in parts.items() if of & scheme.marks}
        self.notes = scheme.notes
        if not self._parts:
            raise ModelError(
                f"{self.where} is {scheme.found.method} by its config, but no matrix in it is: none"
                f" has {' or '.join(sorted(scheme.marks))}."
            )
        twice = self.quantized & others
        if twice:
            raise ModelError(
                f"{self.where} has {min(twice)} twice, quantized and as plain numbers, and doesn't"
                " say which of them is meant; remove one."
            )

    @property
    def quantized(self) -> Set[str]:
        return {f"{layer}.weight" for layer in self._parts}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | StoredMatrix]]:
        """Yield (name, tensor or stored matrix) of every weight."""
        gathered: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in self._checkpoint.tensors():
            layer, part = self._owner.get(name, ("", ""))
            if layer not in self._parts:
                yield name, tensor
                continue
            stored = gathered.setdefault(layer, {})
            stored[part] = tensor
            if len(stored) == len(self._parts[layer]):
                yield f"{layer}.weight", _Matrix(self._scheme, layer, gathered.pop(layer))


class _Matrix(NamedTuple):
    """Hold the tensors of one matrix."""

    scheme: Scheme
    layer: str
    stored: Stored

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored.values())

    def filling(self, shape: tuple[int, int]) -> Filling:
        """Return the matrix; see `StoredMatrix.filling`."""
        try:
            return self.scheme.filling(self.layer, self.stored, shape)
        except ModelError as error:
            raise ModelError(
                f"the {self.scheme.found.method} weight {self.layer} [{shape[0]}, {shape[1]}]:"
                f" {error}."
            ) from None
