"""Compute the rotary angles of a step in Triton, for all its layers: `torch_ops.angles`.

Grid: (pieces of 256 pairs of dimensions), across tokens. Heads have 32 to 128 pairs, mostly no
power of two, and each pair has its own sine and cosine: a program takes the next 256 pairs.

`tl.cos` and `tl.sin` become the functions of CUDA's libdevice, which torch calls too: they reduce
an angle of 100,000 as exactly as one of 1 (result within 2 units of the last place, says the CUDA
C++ Programming Guide). The GPU's fast `cos.approx` is not exact for angles beyond 2π; a test checks
that the compiled code doesn't contain it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 256
NUM_WARPS = 4


@triton.jit(do_not_specialize=["tokens"])
def angles_kernel(
    positions_ptr,  # int64 [tokens]
    inv_freq_ptr,  # fp32 [half]
    cos_ptr,  # fp32 [tokens, 1, 2 * half], written
    sin_ptr,  # fp32 [tokens, 1, 2 * half], written, negated in its first half
    tokens,
    half,
    scale,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = pair // half
    real = token < tokens
    at = pair % half
    position = tl.load(positions_ptr + token, mask=real, other=0).to(tl.float32)
    angle = position * tl.load(inv_freq_ptr + at, mask=real, other=0.0)
    cos = tl.cos(angle) * scale
    sin = tl.sin(angle) * scale
    left = token * 2 * half + at
    tl.store(cos_ptr + left, cos, mask=real)
    tl.store(cos_ptr + left + half, cos, mask=real)
    tl.store(sin_ptr + left, -sin, mask=real)
    tl.store(sin_ptr + left + half, sin, mask=real)


def angles(
    positions: torch.Tensor, inv_freq: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `torch_ops.angles`."""
    contiguous = positions.is_contiguous() and inv_freq.is_contiguous()
    if not contiguous or inv_freq.dtype != torch.float32 or positions.numel() == 0:
        return torch_ops.angles(positions, inv_freq, scale)
    tokens, half = len(positions), len(inv_freq)
    shape, device = (tokens, 1, 2 * half), inv_freq.device
    cos, sin = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    grid = (triton.cdiv(tokens * half, PIECE),)
    moved = positions.nbytes + inv_freq.nbytes + 2 * cos.nbytes
    start(
        "angles",
        angles_kernel,
        grid,
        (positions, inv_freq, cos, sin, tokens, half, float(scale)),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        # a sine takes some 16: 7 to reduce its angle, the rest for a polynomial; so does a cosine
        lambda: Cost(list(grid), moved, 32 * tokens * half, why="pieces of 256 pairs"),
    )
    return cos, sin
