"""Hold a matrix that was read until its layer is packed."""

from __future__ import annotations

from typing import NamedTuple

import torch

from engine.kernels.quantized_weight import QuantizedWeight

Matrix = QuantizedWeight | torch.Tensor
"""A matrix [N, K] of a checkpoint: codes, or plain numbers."""


class Outliers(NamedTuple):
    """Hold a matrix [N, K] with few numbers that aren't 0, row by row."""

    counts: torch.Tensor  # int64 [N]: numbers in each row
    columns: torch.Tensor  # int64 [n]: where each is
    values: torch.Tensor  # fp32 [n]

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """Compute x Wᵀ, each row in one order. x: [tokens, K] → fp32 [tokens, N]."""
        parts = [
            torch.segment_reduce(
                some[:, self.columns].float().mul_(self.values).T.contiguous(),
                "sum",
                lengths=self.counts,
                axis=0,
                unsafe=True,  # the counts were checked when they were read
            ).T
            for some in x.split(max(1, PRODUCTS // max(1, len(self.columns))))
        ]
        return torch.cat(parts)

    def dense(self, inputs: int) -> torch.Tensor:
        """Write it out: fp32 [N, K]."""
        rows = torch.arange(len(self.counts), device=self.counts.device)
        whole = self.values.new_zeros(len(self.counts), inputs)
        return whole.index_put_(
            (rows.repeat_interleave(self.counts), self.columns), self.values, accumulate=True
        )

    def to(self, device: torch.device) -> Outliers:
        return Outliers(*(part.to(device) for part in self))

    @property
    def num_bytes(self) -> int:
        return sum(part.nbytes for part in self)


class Filling(NamedTuple):
    """Hold what a loader puts into a slot."""

    matrix: Matrix
    outliers: Outliers | None = None  # added to the matrix


EXPANDED = 1 << 24
"""Numbers that are compared at once, at most: 64 MB in fp32."""
PRODUCTS = 1 << 24
"""Products with outliers that are kept at once, at most: 64 MB."""


class Slot:
    """Hold one matrix of the checkpoint from when it is read until its layer is packed."""

    def __init__(self, outputs: int, inputs: int, like: torch.Tensor) -> None:
        """Make an empty slot. like: has the device and, for plain numbers, the dtype."""
        self.shape = (outputs, inputs)
        self.device, self.dtype = like.device, like.dtype
        self.outliers: Outliers | None = None
        self._matrix: Matrix | None = None

    def fill(self, filling: Filling) -> None:
        """Take a matrix of the slot's shape, to its device; plain numbers in its dtype."""
        matrix, outliers = filling
        assert tuple(matrix.shape) == self.shape
        if isinstance(matrix, torch.Tensor):
            self._matrix = matrix.to(self.device, self.dtype)
        else:
            self._matrix = matrix.to(self.device)
        self.outliers = None if outliers is None else outliers.to(self.device)

    def take(self) -> Matrix:
        """Return the matrix and forget it."""
        matrix, self._matrix = self._matrix, None
        assert matrix is not None, "the loader reports slots that nothing has filled"
        return matrix

    def stands_for(self, others: torch.Tensor | Slot) -> bool:
        """Return whether its matrix has these numbers: [N, K], rounded to the dtype of `others`."""
        step = max(1, EXPANDED // self.shape[1])
        for start in range(0, self.shape[0], step):
            part = slice(start, start + step)
            other = others.numbers(part) if isinstance(others, Slot) else others[part]
            if not torch.equal(self.numbers(part).to(other.device, other.dtype), other):
                return False
        return True

    def numbers(self, part: slice) -> torch.Tensor:
        """Compute the numbers of some rows: fp32 [n, K], or plain ones as they are."""
        matrix = self._matrix
        assert matrix is not None, "the loader has filled it"
        found = matrix[part] if isinstance(matrix, torch.Tensor) else matrix.rows(part).dequantize()
        return found if self.outliers is None else found + self.outliers.dense(self.shape[1])[part]

    def take_whole(self) -> Matrix:
        """Return the matrix with its outliers added, if it has any: plain numbers then."""
        matrix, outliers, self.outliers = self.take(), self.outliers, None
        if outliers is None:
            return matrix
        numbers = matrix if isinstance(matrix, torch.Tensor) else matrix.dequantize()
        return (numbers + outliers.dense(self.shape[1])).to(self.dtype)


class Share:
    """Take this rank's share of a checkpoint's tensor: neighbours along one dimension."""

    def __init__(
        self,
        view: torch.Tensor,
        whole: tuple[int, ...],
        dim: int,
        start: int,
        parameter: torch.Tensor | None = None,
    ) -> None:
        """Describe a share.

        view: where it goes. whole: the tensor's shape. start: of the share, along dim. parameter:
        what `view` is a part of, where models look for it.
        """
        self.view = view
        self.shape = torch.Size(whole)
        self.parameter = view if parameter is None else parameter
        self._dim, self._start = dim, start

    @property
    def device(self) -> torch.device:
        return self.view.device

    def dim(self) -> int:
        return len(self.shape)

    def copy_(self, tensor: torch.Tensor) -> None:
        """Take the share of a whole tensor."""
        self.view.copy_(tensor.narrow(self._dim, self._start, self.view.shape[self._dim]))

    def fill_(self, value: float) -> None:
        self.view.fill_(value)


Place = torch.Tensor | Share
Target = Place | Slot
"""Where a tensor of the checkpoint goes: a view into a parameter, the slot of a matrix, or a view
that takes a share of it."""
