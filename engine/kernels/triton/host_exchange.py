"""Exchange what every decode step passes between host and device: inputs in, tokens out.

See `torch_ops.take_inputs` and `hand_out`.

Each is a few hundred bytes. Copied by the device's copy engines, they cost a step 35 µs beside an
H200, nearly all of it waiting for the engine to begin and to report its end
(docs/archive/NOTES.md). A kernel reads and writes the host's pinned memory itself, over the
bus, under the host's addresses (unified virtual addressing). Grid: pieces of 256 rows.

A step's inputs are written here. So a kernel that reads them before it waits (`start.py`) may not
be started behind `take_inputs`; a CUDA graph may, because it begins when all before it has ended.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 256
NUM_WARPS = 4


@triton.jit(do_not_specialize=["rows", "stride"])
def take_inputs_kernel(
    packed_ptr,  # int64 [5, stride], written up to `rows` in each line
    drawn_ptr,  # int64 [tokens drawn]; read when DRAWN, where a token is negative
    staged,  # address of int64 [5, stride], the host's
    rows,
    stride,
    DRAWN: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = row < rows
    from_ptr = staged.to(tl.pointer_type(tl.int64)) + row
    token = tl.load(from_ptr, mask=real, other=0)
    position = tl.load(from_ptr + stride, mask=real, other=0)
    slot = tl.load(from_ptr + 2 * stride, mask=real, other=0)
    place = tl.load(from_ptr + 3 * stride, mask=real, other=0)
    lengths = tl.load(from_ptr + 4 * stride, mask=real, other=0)
    wait_for_previous(PDL)
    if DRAWN:
        unknown = real & (token < 0)
        drawn = tl.load(drawn_ptr + place, mask=unknown, other=0)
        token = tl.where(unknown, tl.maximum(drawn, 0), token)
    to_ptr = packed_ptr + row
    tl.store(to_ptr, token, mask=real)
    tl.store(to_ptr + stride, position, mask=real)
    tl.store(to_ptr + 2 * stride, slot, mask=real)
    tl.store(to_ptr + 3 * stride, place, mask=real)
    tl.store(to_ptr + 4 * stride, lengths, mask=real)


@triton.jit(do_not_specialize=["rows"])
def hand_out_kernel(
    tokens_ptr,  # int64 [rows]
    there,  # address of int64 [rows], the host's, written
    rows,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + row, mask=row < rows, other=0)
    tl.store(there.to(tl.pointer_type(tl.int64)) + row, token, mask=row < rows)


def take_inputs(
    packed: torch.Tensor, staged: torch.Tensor, rows: int, drawn: torch.Tensor | None
) -> None:
    """Compute `torch_ops.take_inputs`. staged: in pinned memory."""
    grid = (triton.cdiv(rows, PIECE),)
    start(
        "take_inputs",
        take_inputs_kernel,
        grid,
        (packed, packed if drawn is None else drawn, staged.data_ptr(), rows, packed.stride(0)),
        {"DRAWN": int(drawn is not None), "BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), 80 * rows, 0, why="pieces of 256 rows"),
    )


def hand_out(tokens: torch.Tensor, there: torch.Tensor) -> None:
    """Compute `torch_ops.hand_out`. there: in pinned memory."""
    rows = len(tokens)
    grid = (triton.cdiv(rows, PIECE),)
    start(
        "hand_out",
        hand_out_kernel,
        grid,
        (tokens, there.data_ptr(), rows),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), 16 * rows, 0, why="pieces of 256 rows"),
    )
