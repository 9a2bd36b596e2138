"""Compute SiLU·mul in Triton: `torch_ops.silu_and_mul`.

Grid: (rows, pieces of 1,024 columns). Nothing is shared between values; pieces only give a single
row (decode) more than one program.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.triton.start import FLOATS, let_next_start, start, wait_for_previous

PIECE = 1024
NUM_WARPS = 4


@triton.jit
def silu_and_mul_kernel(
    x_ptr,  # [rows, 2 * width], gate then up, contiguous
    out_ptr,  # [rows, width]
    width,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=real, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty)  # rounded as by torch
    out = silu.to(tl.float32) * up
    tl.store(out_ptr + row * width + at, out.to(out_ptr.dtype.element_ty), mask=real)


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Compute `torch_ops.silu_and_mul`."""
    if x.dtype not in FLOATS or not x.is_contiguous() or x.numel() == 0:
        return torch_ops.silu_and_mul(x)
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    grid = (rows, triton.cdiv(width, PIECE))
    start(
        "silu_and_mul",
        silu_and_mul_kernel,
        grid,
        (x, out, width),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(
            list(grid), x.nbytes + out.nbytes, 4 * x.numel(), why="rows × pieces of 1,024"
        ),
    )
    return out
