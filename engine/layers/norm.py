"""Normalise, alone or fused with the residual sum before it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from engine.kernels import kernels_for


class RMSNorm(nn.Module):
    """Compute the root-mean-square norm (Zhang and Sennrich, 2019) of [..., width].

    The result has the weight's dtype, whatever the residual stream has.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels_for(x.device).rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (norm(x + residual), x + residual), the sum in the wider dtype of the two."""
        return kernels_for(x.device).add_rms_norm(x, residual, self.weight, self.eps)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{prefix}.weight", self.weight


class LayerNorm(nn.Module):
    """Compute the layer norm (Ba et al., 2016) of [tokens, width].

    The result has the weight's dtype, whatever the residual stream has. Without weight and bias
    (affine=False) the weight is ones that no checkpoint fills.
    """

    def __init__(self, width: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.weight: torch.Tensor
        if affine:
            self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        else:
            self.register_buffer("weight", torch.ones(width), persistent=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False) if affine else None
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels_for(x.device).layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (norm(x + residual), x + residual), the sum in the wider dtype of the two."""
        kernels = kernels_for(x.device)
        return kernels.add_layer_norm(x, residual, self.weight, self.bias, self.eps)

    def weight_targets(self, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        if self.bias is not None:
            yield f"{prefix}.weight", self.weight
            yield f"{prefix}.bias", self.bias
