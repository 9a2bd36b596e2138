"""Multiply any number of tokens by a weight matrix so that a row's sums don't depend on the others.

It is `torch_ops.linear` and `torch_ops.logits` for `--batch-invariant`. A row of x is multiplied by
the same instructions, over K from the first tile to the last in one program, whether it is alone or
among thousands: how a launch is cut depends on the weight and the dtype, never on the rows.

Grid: (pieces of N, pieces of the rows).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

BLOCK_M = 64  # what wgmma takes at least; rows that aren't there repeat the last one
NUM_WARPS = 4
NUM_STAGES = 3
MANY_LINES = 8192  # of a weight: wider pieces of it still fill a device


@triton.jit(do_not_specialize=["rows"])
def tiled_kernel(
    x_ptr,  # [rows, K], contiguous, like all others
    weight_ptr,  # [N, K]
    bias_ptr,  # [N]; read when BIAS
    out_ptr,  # [rows, N], of the others' dtype or fp32
    rows,
    N,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # what is beyond the last row or line repeats it, and isn't stored
    line = tl.minimum(n, N - 1).to(tl.int64)
    x_at = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * K + k[None, :]
    weight_at = weight_ptr + line[None, :] * K + k[:, None]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, K, BLOCK_K):
        if K % BLOCK_K == 0:
            x = tl.load(x_at + first)
            weight = tl.load(weight_at + first)
        else:
            x = tl.load(x_at + first, mask=(k < K - first)[None, :], other=0.0)
            weight = tl.load(weight_at + first, mask=(k < K - first)[:, None], other=0.0)
        sums = tl.dot(x, weight, sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias_ptr + line).to(tl.float32)[None, :]
    tl.store(
        out_ptr + row.to(tl.int64)[:, None] * N + n[None, :],
        sums.to(out_ptr.dtype.element_ty),
        mask=(row < rows)[:, None] & (n < N)[None, :],
    )


def constants(lines: int, inputs: int, dtype: torch.dtype, bias: bool) -> dict[str, int]:
    """Return the kernel's compile-time arguments; not tried on a card.

    lines: of the weight, `inputs` long.
    """
    return {
        "K": inputs,
        "BIAS": int(bias),
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": 64 if lines >= MANY_LINES else 32,
        "BLOCK_K": 32 if dtype == torch.float32 else 64,
    }


def tiled(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Launch the product once → [rows, N].

    All tensors are of one dtype, weight and bias contiguous. dtype: of the result; None: the
    weight's.
    """
    x = x.contiguous()
    rows, (lines, inputs) = len(x), weight.shape
    out = torch.empty((rows, lines), dtype=dtype or weight.dtype, device=x.device)
    if rows == 0:
        return out
    cut = constants(lines, inputs, weight.dtype, bias is not None)
    grid = (triton.cdiv(lines, cut["BLOCK_N"]), triton.cdiv(rows, BLOCK_M))
    start(
        "linear",
        tiled_kernel,
        grid,
        (x, weight, x if bias is None else bias, out, rows, lines),
        cut,
        NUM_WARPS,
        NUM_STAGES,
        lambda: Cost(
            list(grid),
            x.nbytes + weight.nbytes + out.nbytes,
            2 * rows * weight.numel(),
            str(x.dtype).removeprefix("torch."),
            f"batch-invariant: {rows} rows in tiles of {BLOCK_M}, as one would be",
        ),
    )
    return out
