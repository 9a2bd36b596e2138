"""Multiply few tokens by a weight matrix that is read once, as fast as memory allows.

What stands beside the product is computed too. What each form computes is said by its reference in
`torch_ops`: `linear`, `linear_relu`, `linear_add`, `norm_linear`, `norm_gated`; `linear.py`
chooses.

With 1 to 4 rows there is nothing for tensor cores to reuse: each weight is multiplied 1 to 4 times.
A product then depends on bytes in flight. Each program requests its first weights before it waits
for the kernel that makes x, and the next ones before it uses these. A thread adds up the `VECTOR`
products of each load of 16 bytes at once, so that few registers hold sums and many hold weights
that are being loaded.

Grid: one program for every few outputs, all of K in each. There are always enough: 2,048 outputs
are 1,024 programs. A norm of x is a factor of the whole product: every program adds up the squares
beside it, and loading weights doesn't wait for them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous
from engine.trace.wording import count

MAX_ROWS = 4
VECTOR = 8  # values of 2 bytes that a thread loads at once
WARP = 32 * VECTOR


@triton.jit(do_not_specialize=["rows"])
def skinny_kernel(
    x_ptr,  # [rows, K], contiguous, like all others; when NORM of the others' dtype or fp32
    weight_ptr,  # [N, K]; when GATED [2 * N, K], gate above up
    bias_ptr,  # [N] or [2 * N]; read when BIAS
    norm_ptr,  # [K]; read when NORM
    residual_ptr,  # [rows, N]; read when ADD; of the others' dtype or fp32
    out_ptr,  # [rows, N]; when ADD of the residual's dtype, else of the others' or fp32
    rows,
    N,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,  # rows, rounded up to a power of two
    BLOCK_N: tl.constexpr,  # lines of the weight for a program
    BLOCK_K: tl.constexpr,
    VECTOR: tl.constexpr,  # neighbours along K that one thread has
    NORM: tl.constexpr,  # x is normalised first
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    row = tl.arange(0, ROWS)
    line = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)[None, None, :]
    # what is beyond the last row or line repeats it, and isn't stored
    if GATED:
        line = tl.minimum(line, 2 * N - 1)
        line = line // 2 + line % 2 * N  # an output's gate, then its up
    else:
        line = tl.minimum(line, N - 1)
    x_at = x_ptr + tl.minimum(row, rows - 1)[:, None, None] * K + k
    weight_at = weight_ptr + line.to(tl.int64)[None, :, None] * K + k
    LAST: tl.constexpr = (K - 1) // BLOCK_K * BLOCK_K  # where the last tile begins
    WHOLE: tl.constexpr = K % BLOCK_K == 0  # and whether it ends with K
    weight = _load(weight_at, k, 0, K, LAST > 0 or WHOLE, True)
    if BIAS:
        bias = tl.load(bias_ptr + line).to(tl.float32)
    wait_for_previous(PDL)

    OUTPUTS: tl.constexpr = BLOCK_N // 2 if GATED else BLOCK_N
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    place = row[:, None] * N + n[None, :]
    real = (row < rows)[:, None] & (n < N)[None, :]
    if ADD:
        residual = tl.load(residual_ptr + place, mask=real, other=0.0).to(tl.float32)

    sums = tl.zeros([ROWS, BLOCK_N, BLOCK_K // VECTOR], tl.float32)
    squares = tl.zeros([ROWS, 1, BLOCK_K // VECTOR], tl.float32)
    for first in range(0, LAST, BLOCK_K):
        this = weight  # the next weights are asked for before these are used
        weight = _load(weight_at, k, first + BLOCK_K, K, WHOLE, True)
        x = _load(x_at, k, first, K, True, False).to(tl.float32)
        if NORM:
            squares += _fold(x * x, VECTOR)
            x *= _load(norm_ptr + k, k, first, K, True, False).to(tl.float32)
        sums += _fold(x * this.to(tl.float32), VECTOR)
    x = _load(x_at, k, LAST, K, WHOLE, False).to(tl.float32)
    if NORM:
        squares += _fold(x * x, VECTOR)
        x *= _load(norm_ptr + k, k, LAST, K, WHOLE, False).to(tl.float32)
    sums += _fold(x * weight.to(tl.float32), VECTOR)

    out = tl.sum(sums, 2)
    if NORM:  # the mean square is a factor of all products: known at the end is early enough
        out *= tl.rsqrt(tl.sum(squares, 2) / K + eps)
    if BIAS:
        out += bias[None, :]
    if RELU:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if GATED:
        gate, up = tl.split(tl.reshape(out, [ROWS, OUTPUTS, 2]))
        out = (
            gate / (1.0 + tl.exp(-gate)) * up
        )  # of the sums as they are: rounded once, when stored
    if ADD:
        out = out.to(out_ptr.dtype.element_ty).to(tl.float32) + residual
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _load(at, k, first, K: tl.constexpr, WHOLE: tl.constexpr, ONCE: tl.constexpr):
    """Load a tile of what `at` points to, `first` values further along K.

    If it isn't WHOLE, 0 beyond the end. What is read ONCE, a weight, may leave the cache first.
    """
    EVICT: tl.constexpr = "evict_first" if ONCE else ""
    if WHOLE:
        return tl.load(at + first, eviction_policy=EVICT)
    return tl.load(at + first, mask=k < K - first, other=0.0, eviction_policy=EVICT)


@triton.jit
def _fold(products, VECTOR: tl.constexpr):
    """Add neighbours: [rows, lines, K] → [rows, lines, K / VECTOR]."""
    shape: tl.constexpr = products.shape
    return tl.sum(tl.reshape(products, [shape[0], shape[1], shape[2] // VECTOR, VECTOR]), 3)


class Form(NamedTuple):
    """State what stands beside the product."""

    norm: bool = False
    bias: bool = False
    relu: bool = False
    gated: bool = False
    add: bool = False


class Tile(NamedTuple):
    """State what a program multiplies at once."""

    lines: int
    inputs: int  # a power of two


def tile_for(lines: int, inputs: int) -> Tile:
    """Choose a tile by a rule that is near the best of some 30 tried on an H200.

    They were tried for each shape of four models (docs/archive/NOTES.md). lines: of the
    weight, `inputs` long.
    """
    if inputs > 2048 and lines <= 2048:  # few programs: each with many bytes in flight
        return Tile(1, 2048)
    if inputs <= 1024:
        return Tile(4, 512) if inputs % 512 == 0 else Tile(4, 1024)
    if inputs <= 2048:
        return Tile(8, 256) if lines >= 8192 else Tile(2, 1024)
    return Tile(2, 2048) if inputs % 2048 == 0 else Tile(4, 1024)


def constants(rows: int, lines: int, inputs: int, form: Form) -> dict[str, int]:
    """Return the kernel's compile-time arguments. Several rows share the registers that one has."""
    padded = triton.next_power_of_2(rows)
    tile = tile_for(lines, inputs)
    return {
        "K": inputs,
        "ROWS": padded,
        "BLOCK_N": max(2 if form.gated else 1, tile.lines // padded),
        "BLOCK_K": min(tile.inputs, max(16, triton.next_power_of_2(inputs))),
        "VECTOR": VECTOR,
        "NORM": int(form.norm),
        "BIAS": int(form.bias),
        "RELU": int(form.relu),
        "GATED": int(form.gated),
        "ADD": int(form.add),
    }


def warps(constants: dict[str, int]) -> int:
    """Return the warps that load a line of a tile at once, a vector for each thread."""
    return max(1, constants["BLOCK_K"] // WARP)


def skinny(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    relu: bool = False,
    gated: bool = False,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Launch the product once for 1 to `MAX_ROWS` rows → [rows, N].

    All tensors are contiguous and of one dtype, but for the residual stream (the residual; x before
    a norm), which may be fp32. Shapes stand at the kernel. name: in the record. dtype: of the
    result, None: the residual's, else the weight's.
    """
    rows, inputs = x.shape
    outputs = len(weight) // 2 if gated else len(weight)
    dtype = dtype or (weight if residual is None else residual).dtype
    out = torch.empty((rows, outputs), dtype=dtype, device=x.device)
    form = Form(norm is not None, bias is not None, relu, gated, residual is not None)
    cut = constants(rows, len(weight), inputs, form)
    grid = (triton.cdiv(len(weight), cut["BLOCK_N"]),)
    pointers = tuple(x if tensor is None else tensor for tensor in (bias, norm, residual))
    moved = x.nbytes + weight.nbytes + out.nbytes * (1 if residual is None else 2)
    start(
        name,
        skinny_kernel,
        grid,
        (x, weight, *pointers, out, rows, outputs, eps),
        cut,
        warps(cut),
        1,
        lambda: Cost(
            list(grid),
            moved,
            2 * rows * weight.numel(),
            why=f"{count(rows, 'row')} {'reuses' if rows == 1 else 'reuse'} no"
            f" weight: no tensor cores, {cut['BLOCK_N']} lines a program",
        ),
    )
    return out
