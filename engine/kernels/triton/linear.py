"""Multiply matrices on CUDA: few rows by our own kernel (`skinny.py`), others by cuBLAS.

cuBLAS is called through torch, but launched by us, so that the record shows these products among
the kernels, and why.
"""

from __future__ import annotations

import torch

from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.few_rows import FewRows
from engine.kernels.launch import launch
from engine.kernels.triton.skinny import MAX_ROWS, skinny
from engine.kernels.triton.start import FLOATS


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, wide: bool = False
) -> torch.Tensor:
    """Compute `torch_ops.linear`; wide: in fp32 but for many rows with a bias.

    cuBLAS's kernels that add a bias round what they store, and adding it later would be one more
    launch.
    """
    if _is_skinny(x, weight, bias):
        return skinny("linear", x, weight, bias, dtype=torch.float32 if wide else None)
    if wide and bias is None:
        return launch("linear", "torch", torch_ops.logits, (x, weight), _cost, x, weight)
    return launch("linear", "torch", torch_ops.linear, (x, weight, bias), _cost, x, weight)


def logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute `torch_ops.logits`."""
    if _is_skinny(x, weight):
        return skinny("linear", x, weight, dtype=torch.float32)
    return launch("linear", "torch", torch_ops.logits, (x, weight), _cost, x, weight)


def linear_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `few_rows.linear_relu`."""
    if _is_skinny(x, weight, bias):
        return skinny("linear_relu", x, weight, bias, relu=True)
    return torch_ops.relu(linear(x, weight, bias))


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    """Compute `few_rows.linear_add`."""
    if _is_skinny(x, weight, bias, stream=residual):
        return skinny("linear_add", x, weight, bias, residual=residual)
    return (linear(x, weight, bias, wide=True) + residual).to(residual.dtype)


def norm_linear(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute `few_rows.norm_linear`."""
    if _is_skinny(x, weight, bias, norm, stream=x):
        return skinny("norm_linear", x, weight, bias, norm, eps, dtype=torch.float32)
    return linear(torch_ops.rms_norm(x, norm, eps), weight, bias, wide=True)


def norm_gated(
    x: torch.Tensor,
    norm: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute `few_rows.norm_gated`."""
    if _is_skinny(x, weight, bias, norm, stream=x):
        return skinny("norm_gated", x, weight, bias, norm, eps, gated=True)
    return torch_ops.silu_and_mul(linear(torch_ops.rms_norm(x, norm, eps), weight, bias))


few_rows = FewRows(MAX_ROWS, linear_relu, linear_add, norm_linear, norm_gated)
"""`Kernels.few_rows`. Where the kernel doesn't take a tensor, the parts are computed one by one."""


def _is_skinny(
    x: torch.Tensor,
    weight: torch.Tensor,
    *others: torch.Tensor | None,
    stream: torch.Tensor | None = None,
) -> bool:
    """Return whether there are few rows, and all are contiguous and of one dtype of ours.

    Only the residual stream may be fp32 instead.
    """
    if not (0 < len(x) <= MAX_ROWS and x.dim() == 2 and weight.dtype in FLOATS):
        return False
    if stream is not None and stream.dtype not in (weight.dtype, torch.float32):
        return False
    there = [tensor for tensor in (x, weight, *others, stream) if tensor is not None]
    return all(
        tensor.is_contiguous() and (tensor is stream or tensor.dtype == weight.dtype)
        for tensor in there
    )


def _cost(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Cost:
    """Count what must be moved and multiplied; the grid is cuBLAS's own."""
    moved = x.nbytes + weight.nbytes + out.nbytes
    flops = 2 * x.shape[0] * weight.numel()
    why = f"cuBLAS cuts it; {len(x)} rows are worth tensor cores"
    if len(x) <= MAX_ROWS:
        why = "cuBLAS cuts it; our kernel for few rows doesn't take these tensors"
    return Cost([], moved, flops, str(x.dtype).removeprefix("torch."), why)
