"""Activations between the two halves of a feed-forward block."""

from __future__ import annotations

import torch

from engine.kernels import kernels_for


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """x: [tokens, 2 * width], gate then up → silu(gate) * up: [tokens, width]."""
    return kernels_for(x.device).silu_and_mul(x)


def relu(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) in place of x. Returns x."""
    return kernels_for(x.device).relu(x)
