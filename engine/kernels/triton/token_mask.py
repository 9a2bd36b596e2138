"""Forbid tokens by a set of bits in Triton: `torch_ops.mask_logits`.

Grid: (rows, pieces of 1,024 tokens). A program reads 32 words of bits, and writes only where a
token is forbidden, so that a mask that forbids little costs little.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels import torch_ops
from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 1024
NUM_WARPS = 4


@triton.jit
def mask_logits_kernel(
    logits_ptr,  # fp32 [*, width], contiguous, changed
    masks_ptr,  # int32 [rows, words], contiguous
    rows_ptr,  # int64 [rows], lines of logits
    width,
    words,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    line = tl.load(rows_ptr + row)
    word = tl.load(masks_ptr + row * words + at // 32, mask=at < width, other=-1)
    forbidden = ((word >> (at % 32)) & 1) == 0
    to = logits_ptr + line * width + at
    tl.store(to, float("-inf"), mask=forbidden & (at < width))


def mask_logits(logits: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor) -> None:
    """Compute `torch_ops.mask_logits`."""
    if not logits.is_contiguous() or logits.dtype is not torch.float32 or not len(rows):
        torch_ops.mask_logits(logits, masks, rows)
        return
    count, width = len(rows), logits.shape[1]
    grid = (count, triton.cdiv(width, PIECE))
    start(
        "mask_logits",
        mask_logits_kernel,
        grid,
        (logits, masks.contiguous(), rows, width, masks.shape[1]),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), masks.nbytes + 4 * count * width, 0, why="pieces of 1,024 tokens"),
    )
