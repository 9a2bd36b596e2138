"""Apply the activations between the two halves of a feed-forward block."""

from __future__ import annotations

import torch

from engine.kernels import kernels_for


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Compute silu(gate) * up. x: [tokens, 2 * width], gate then up → [tokens, width]."""
    return kernels_for(x.device).silu_and_mul(x)


def relu(x: torch.Tensor) -> torch.Tensor:
    """Compute max(x, 0) in place, and return x."""
    return kernels_for(x.device).relu(x)
