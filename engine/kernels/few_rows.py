"""Define operations that are one kernel each when a step has few tokens, in plain torch.

With many tokens a matrix product is worth a kernel of its own, and the operations beside it cost
little. With one token, a step is some hundred kernels of a few microseconds, and each kernel saved
counts. A backend that has these offers them as `Kernels.few_rows`.

x: [tokens, K], weight: [N, K], bias: [N], residual: [tokens, N], norm: [K], the weight of an
RMSNorm → [tokens, N]. The residual stream, which is added to or normalised, may be in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.kernels import torch_ops


class FewRows(NamedTuple):
    """Hold the functions below, as one backend computes them."""

    most: int  # tokens of a step, at most; with more these are slower
    linear_relu: Callable[..., torch.Tensor]
    linear_add: Callable[..., torch.Tensor]
    norm_linear: Callable[..., torch.Tensor]
    norm_gated: Callable[..., torch.Tensor]


def linear_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute max(x Wᵀ + b, 0)."""
    return torch_ops.relu(torch_ops.linear(x, weight, bias))


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    """Compute x Wᵀ + b + residual, in the residual's dtype."""
    return (torch_ops.linear(x, weight, bias, wide=True) + residual).to(residual.dtype)


def norm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute rms_norm(x) Wᵀ + b, in fp32 where the backend keeps sums (`torch_ops.linear`)."""
    return torch_ops.linear(torch_ops.rms_norm(x, norm, eps), weight, bias, wide=True)


def norm_gated(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute silu_and_mul(rms_norm(x) Wᵀ + b), in the weight's dtype.

    weight: [2 * N, K], gate above up; bias: [2 * N].
    """
    product = torch_ops.linear(torch_ops.rms_norm(x, norm, eps), weight, bias)
    return torch_ops.silu_and_mul(product)
