"""Multiply by one matrix, or by several of the checkpoint merged into one for speed.

A model makes its linear layers through a `LinearFactory`, so that a quantized format can use its
own class instead. A layer tells the loader where each tensor of the checkpoint goes
(`weight_targets`): a view into its parameter, so that merging costs no copy. When all are loaded,
`pack` lays them out as the device's kernel reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from engine.kernels import kernels_for
from engine.kernels.few_rows import FewRows
from engine.layers.activation import relu, silu_and_mul
from engine.layers.slot import Target


class LinearLayer(Protocol):
    """State what a model needs of a linear layer."""

    @property
    def dense(self) -> Dense | None:
        """Return the matrix and bias of x Wᵀ + b, if the layer computes that and nothing else.

        Fused kernels use them instead of calling the layer.
        """
        ...

    def __call__(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor: ...

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]: ...


@runtime_checkable
class Packable(Protocol):
    """Hold weights that a kernel may read faster in another order than the checkpoint's."""

    def pack(self) -> None: ...


@runtime_checkable
class Sized(Protocol):
    """Hold weights that are not among the parameters of a module of torch."""

    @property
    def sizes(self) -> tuple[int, int]:
        """Return (weights, bytes that they take)."""
        ...


class Dense(NamedTuple):
    """Hold a matrix in the order in which this device's kernels read it.

    weight: [N, K], bias: [N].
    """

    weight: torch.Tensor
    bias: torch.Tensor | None


class LinearFactory(Protocol):
    """Make a linear layer: K inputs, and the outputs of each part by its checkpoint name."""

    def __call__(self, inputs: int, parts: Mapping[str, int], bias: bool) -> LinearLayer: ...


class Linear(nn.Module):
    """Compute y = x Wᵀ + b. weight: [N, K], the parts one below the other; bias: [N]."""

    def __init__(self, inputs: int, parts: Mapping[str, int], bias: bool) -> None:
        """Allocate the parameters.

        inputs: K. parts: each merged matrix's checkpoint name → its outputs.
        """
        super().__init__()
        outputs = sum(parts.values())
        self.parts = dict(parts)
        self.weight = nn.Parameter(torch.empty(outputs, inputs), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs), requires_grad=False) if bias else None

    @property
    def dense(self) -> Dense | None:
        return Dense(self.weight, self.bias)

    def forward(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """Compute x Wᵀ + b. x: [tokens, K] → [tokens, N].

        wide: in fp32, as the sums are, where the device's kernels store that for nothing. For what
        reads its input in either dtype: the residual sum, and attention.
        """
        return kernels_for(x.device).linear(x, self.weight, self.bias, wide)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, Target]]:
        """Yield (name in the checkpoint, where it goes) of each part.

        prefix: "model.layers.0.mlp".
        """
        yield from self.views(prefix)

    def views(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name in the checkpoint, view into the parameter) of each part."""
        start = 0
        for part, outputs in self.parts.items():
            yield f"{prefix}.{part}.weight", self.weight[start : start + outputs]
            if self.bias is not None:
                yield f"{prefix}.{part}.bias", self.bias[start : start + outputs]
            start += outputs

    def pack(self) -> None:
        """Lay the loaded weight out as this device's kernel reads it fastest."""
        self.weight = packed(self.weight)


class GatedLinear(Linear):
    """Compute silu(gate) * up of the halves of x Wᵀ + b. `dense` is of the product."""

    def forward(self, x: torch.Tensor, wide: bool = False) -> torch.Tensor:
        """Compute the gated half. x: [tokens, K] → [tokens, N / 2], in x's dtype always."""
        gated = kernels_for(x.device).linear_gated
        if gated is None:
            return silu_and_mul(super().forward(x))
        return gated(x, self.weight, self.bias)

    def pack(self) -> None:
        pack_gated = kernels_for(self.weight.device).pack_gated
        if pack_gated is None:
            super().pack()
            return
        weight, bias = pack_gated(self.weight, self.bias)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def few_rows(x: torch.Tensor) -> FewRows | None:
    """Return the kernels that fuse a matrix product with its neighbours, if they apply.

    They apply if this device has them and x: [tokens, K] has few enough rows; None otherwise. They
    take the weights of plain `Linear`s.
    """
    few = kernels_for(x.device).few_rows
    return few if few is not None and len(x) <= few.most else None


def linear_relu(layer: LinearLayer, x: torch.Tensor) -> torch.Tensor:
    """Compute max(layer(x), 0): [tokens, N]."""
    few = few_rows(x)
    if few is not None and (dense := layer.dense) is not None:
        return few.linear_relu(x, *dense)
    return relu(layer(x))


def packed(weight: nn.Parameter) -> nn.Parameter:
    """Pack a parameter, or return it if the device's kernels read the checkpoint's order."""
    found = kernels_for(weight.device).pack_weight(weight)
    return weight if found is weight else nn.Parameter(found, requires_grad=False)
