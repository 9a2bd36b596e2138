"""Embed tokens, and for OPT their positions, in Triton: `torch_ops.embed`.

Grid: (tokens, pieces of 1,024 columns). A token's row lies anywhere in the table and is only
copied, so nothing is shared; pieces give a single token (decode) more than one program.

A kernel can't raise for a token that isn't in the table. If there is one, its row becomes NaN,
which ends its request with a named error (`NO_TOKEN`); nothing outside the table is read, and other
requests continue. Positions are always valid: the scheduler counts them, and rows that only pad a
graph have those of an earlier step.
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
def embed_kernel(
    ids_ptr,  # int64 [tokens], contiguous, like all others
    positions_ptr,  # int64 [tokens]; read when ADD
    table_ptr,  # [entries, width]
    places_ptr,  # [positions, width]; read when ADD
    out_ptr,  # fp32 [tokens, width]
    entries,
    width,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,  # the embedding of the position
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = at < width
    entry = tl.load(ids_ptr + token)
    known = (entry >= 0) & (entry < entries)
    x = tl.load(table_ptr + entry * width + at, mask=real & known, other=float("nan"))
    if ADD:
        place = tl.load(positions_ptr + token) * width
        x = x.to(tl.float32) + tl.load(places_ptr + place + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * width + at, x.to(out_ptr.dtype.element_ty), mask=real)


def embed(
    ids: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None = None,
    position_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `torch_ops.embed`; a token that isn't in the table gives a row of NaN."""
    if not _takes(ids, table, positions, position_table):
        return torch_ops.embed(ids, table, positions, position_table)
    tokens, width = len(ids), table.shape[1]
    out = torch.empty((tokens, width), dtype=torch.float32, device=table.device)
    add = positions is not None and position_table is not None
    grid = (tokens, triton.cdiv(width, PIECE))
    moved = out.nbytes + (1 + add) * (out.numel() * table.element_size() + 8 * tokens)
    start(
        "embed",
        embed_kernel,
        grid,
        (
            ids,
            positions if add else ids,
            table,
            position_table if add else table,
            out,
            *table.shape,
        ),
        {"BLOCK": PIECE, "ADD": int(add)},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), moved, add * tokens * width, why="tokens × pieces of 1,024"),
    )
    return out


def _takes(
    ids: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor | None,
    places: torch.Tensor | None,
) -> bool:
    """Return whether all are contiguous and of one dtype of ours.

    Then rounding is the reference's.
    """
    if table.dtype not in FLOATS or ids.numel() == 0:
        return False
    whole = ((ids, torch.int64), (positions, torch.int64), (table, table.dtype))
    return all(
        tensor is None or (tensor.is_contiguous() and tensor.dtype == dtype)
        for tensor, dtype in (*whole, (places, table.dtype))
    )
