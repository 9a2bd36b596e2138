"""Compute RMSNorm and LayerNorm in Triton, alone or behind a residual sum.

They are `torch_ops.rms_norm`, `add_rms_norm`, `layer_norm`, `add_layer_norm`.

Grid: one program for each row. A row is read once, kept in registers as fp32, and written once.
With the residual, the sum is rounded to its dtype (fp32 if one of the two is) before it is
normalised, as the torch reference does, and is written too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.triton.start import FLOATS, let_next_start, start, wait_for_previous

MAX_WIDTH = 32768  # a row must fit the registers of one program


@triton.jit
def norm_kernel(
    x_ptr,  # [rows, width], contiguous, like all others; may be fp32
    residual_ptr,  # [rows, width]; read when ADD; may be fp32
    weight_ptr,  # [width]; read when WEIGHT
    bias_ptr,  # [width]; read when BIAS
    out_ptr,  # [rows, width]
    total_ptr,  # [rows, width], x + residual; written when ADD, in the wider dtype of the two
    width,
    eps,
    BLOCK: tl.constexpr,  # width, rounded up to a power of two
    CENTER: tl.constexpr,  # LayerNorm: the mean goes first
    ADD: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    at = tl.arange(0, BLOCK)
    real = at < width
    if WEIGHT:
        weight = tl.load(weight_ptr + at, mask=real, other=0.0)
    if BIAS:
        bias = tl.load(bias_ptr + at, mask=real, other=0.0)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64) * width
    x = tl.load(x_ptr + row + at, mask=real, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + row + at, mask=real, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row + at, x, mask=real)
    x = x.to(tl.float32)
    if CENTER:
        x = tl.where(real, x - tl.sum(x, 0) / width, 0.0)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    if WEIGHT:
        y = y * weight.to(tl.float32)
    if BIAS:
        y = y + bias.to(tl.float32)
    tl.store(out_ptr + row + at, y.to(out_ptr.dtype.element_ty), mask=real)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute `torch_ops.rms_norm`."""
    if not _takes(x, None, weight, None):
        return torch_ops.rms_norm(x, weight, eps)
    return _run("rms_norm", x, None, weight, None, eps, center=False)[0]


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `torch_ops.add_rms_norm`."""
    if not _takes(x, residual, weight, None):
        return torch_ops.add_rms_norm(x, residual, weight, eps)
    return _run("add_rms_norm", x, residual, weight, None, eps, center=False)


def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """Compute `torch_ops.layer_norm`."""
    if not _takes(x, None, weight, bias):
        return torch_ops.layer_norm(x, weight, bias, eps)
    return _run("layer_norm", x, None, weight, bias, eps, center=True)[0]


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `torch_ops.add_layer_norm`."""
    if not _takes(x, residual, weight, bias):
        return torch_ops.add_layer_norm(x, residual, weight, bias, eps)
    return _run("add_layer_norm", x, residual, weight, bias, eps, center=True)


def warps_for(block: int) -> int:
    """Return the warps for about 16 values a thread.

    That is enough in flight, and few enough for the registers.
    """
    return min(16, max(1, block // 512))


def constants(width: int, center: bool, add: bool, weight: bool, bias: bool) -> dict[str, int]:
    """Return the kernel's compile-time arguments."""
    return {
        "BLOCK": triton.next_power_of_2(width),
        "CENTER": int(center),
        "ADD": int(add),
        "WEIGHT": int(weight),
        "BIAS": int(bias),
    }


def _takes(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> bool:
    """Return whether all have one dtype of ours and a row fits.

    Only the residual stream, and what is added to it, may be fp32 instead. Then rounding is the
    reference's.
    """
    dtype = x.dtype if weight is None else weight.dtype
    same = bias is None or bias.dtype == dtype
    wide = all(one is None or one.dtype in (dtype, torch.float32) for one in (x, residual))
    return same and wide and dtype in FLOATS and x.shape[-1] <= MAX_WIDTH and x.numel() > 0


def _run(
    name: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    center: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel and return (norm, x + residual)."""
    x = x.contiguous()
    rows, width = x.numel() // x.shape[-1], x.shape[-1]
    out, total = torch.empty_like(x, dtype=x.dtype if weight is None else weight.dtype), x
    moved = x.nbytes + out.nbytes
    if residual is not None:
        residual = residual.contiguous()
        total = torch.empty_like(x if x.dtype is torch.float32 else residual)
        moved += residual.nbytes + total.nbytes
    pointers = tuple(x if tensor is None else tensor for tensor in (residual, weight, bias))
    start(
        name,
        norm_kernel,
        (rows,),
        (x, *pointers, out, total, width, eps),
        constants(width, center, residual is not None, weight is not None, bias is not None),
        warps_for(triton.next_power_of_2(width)),
        1,
        lambda: Cost([rows], moved, 4 * x.numel(), why="one program for each row"),
    )
    return out, total
