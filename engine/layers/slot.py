"""Hold a matrix that was read until its layer is packed."""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.kernels.quantized import QuantizedWeight

Matrix = QuantizedWeight | torch.Tensor
"""A matrix [N, K] of a checkpoint: codes, or plain numbers."""


class Filling(NamedTuple):
    """Hold what a loader puts into a slot."""

    matrix: Matrix
    sparse: torch.Tensor | None = None  # fp32 [N, K] in CSR, added to the matrix


class Slot:
    """Hold one matrix of the checkpoint from when it is read until its layer is packed."""

    def __init__(self, outputs: int, inputs: int, like: torch.Tensor) -> None:
        """Make an empty slot. like: has the device and, for plain numbers, the dtype."""
        self.shape = (outputs, inputs)
        self.device, self.dtype = like.device, like.dtype
        self.sparse: torch.Tensor | None = None
        self._matrix: Matrix | None = None

    def fill(self, filling: Filling) -> None:
        """Take a matrix of the slot's shape, to its device; plain numbers in its dtype."""
        matrix, sparse = filling
        assert tuple(matrix.shape) == self.shape
        if isinstance(matrix, torch.Tensor):
            self._matrix = matrix.to(self.device, self.dtype)
        else:
            self._matrix = matrix.to(self.device)
        self.sparse = None if sparse is None else sparse.to(self.device)

    def take(self) -> Matrix:
        """Return the matrix and forget it."""
        matrix, self._matrix = self._matrix, None
        assert matrix is not None, "the loader reports slots that nothing has filled"
        return matrix


Target = torch.Tensor | Slot
"""Where a tensor of the checkpoint goes: a view into a parameter, or the slot of a matrix."""
