"""Norm heads, rotate and write to the cache in one pass, from the merged projection.

It is what precedes attention in `torch_attention.qkv_attention`, and `torch_attention.write_kv`.

Grid of `rotate_and_write`: (tokens, tiles of 16 heads). Heads are independent, and q, k and v heads
lie one after another in the projection, so a tile takes whichever it finds: q heads are rotated
into a tensor for attention, k heads into the cache, v heads go to the cache unchanged. More
programs than one for each token keep a device busy when a step has few tokens.

Grid of `write_kv`: (tokens, pieces of 1,024 values), for models that rotate on their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from engine.kernels import torch_attention
from engine.kernels.cost import Cost
from engine.kernels.fp8_cache import LARGEST, computed_in
from engine.kernels.triton.paged_attention import paged_attention, takes
from engine.kernels.triton.start import FLOATS, let_next_start, start, wait_for_previous

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, QKNorms

HEADS = 16  # of a tile: each thread then has 8 adjacent values, 16 bytes
PIECE = 1024
WRITE_WARPS = 4


@triton.jit
def _kept(x, LARGEST: tl.constexpr):
    """Clamp x to what the pages hold: 8-bit floats end at LARGEST."""
    if LARGEST:
        x = x.to(tl.float32)
        x = tl.clamp(x, -1.0 * LARGEST, 1.0 * LARGEST, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def rotate_and_write_kernel(
    qkv_ptr,  # [tokens, (heads + 2 kv_heads) * 2 * HALF], contiguous; may be fp32
    cos_ptr,  # fp32 [tokens, 1, 2 * HALF]; read when ROTATE
    sin_ptr,  # fp32 [tokens, 1, 2 * HALF], negated in its first half; read when ROTATE
    q_norm_ptr,  # [2 * HALF]; read when NORM
    k_norm_ptr,  # [2 * HALF]; read when NORM
    q_ptr,  # [tokens, heads, 2 * HALF], written
    k_ptr,  # [slots, kv_heads, 2 * HALF], the pages, written
    v_ptr,  # the same
    slots_ptr,  # int64 [tokens], −1: a row that only pads a graph, written nowhere
    heads,
    kv_heads,
    eps,
    HALF: tl.constexpr,  # of a head's dimension
    WIDE: tl.constexpr,  # HALF, rounded up to a power of two
    BLOCK: tl.constexpr,  # heads of a tile
    ROTATE: tl.constexpr,
    NORM: tl.constexpr,
    LARGEST: tl.constexpr,  # that the pages can hold; 0: as large as any
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = tl.arange(0, WIDE)
    dims = at < HALF
    is_q = head < heads
    is_k = (head >= heads) & (head < heads + kv_heads)
    is_v = (head >= heads + kv_heads) & (head < heads + 2 * kv_heads)
    turns = (is_q | is_k)[:, None]
    real = (is_q | is_k | is_v)[:, None] & dims[None, :]
    slot = tl.load(slots_ptr + token) * kv_heads
    if NORM:
        q_left = tl.load(q_norm_ptr + at, mask=dims, other=0.0).to(tl.float32)
        q_right = tl.load(q_norm_ptr + at + HALF, mask=dims, other=0.0).to(tl.float32)
        k_left = tl.load(k_norm_ptr + at, mask=dims, other=0.0).to(tl.float32)
        k_right = tl.load(k_norm_ptr + at + HALF, mask=dims, other=0.0).to(tl.float32)
    wait_for_previous(PDL)

    source = (token * (heads + 2 * kv_heads) + head)[:, None] * (2 * HALF) + at[None, :]
    left = tl.load(qkv_ptr + source, mask=real, other=0.0).to(tl.float32)
    right = tl.load(qkv_ptr + source + HALF, mask=real, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(left * left, 1) + tl.sum(right * right, 1)
        factor = tl.where(turns, tl.rsqrt(squares / (2 * HALF) + eps)[:, None], 1.0)
        left_weight = tl.where(is_q[:, None], q_left[None, :], k_left[None, :])
        right_weight = tl.where(is_q[:, None], q_right[None, :], k_right[None, :])
        left = left * tl.where(turns, factor * left_weight, 1.0)
        right = right * tl.where(turns, factor * right_weight, 1.0)
        # the reference's norm gives a tensor of the projection's dtype: the same rounding here
        left = left.to(qkv_ptr.dtype.element_ty).to(tl.float32)
        right = right.to(qkv_ptr.dtype.element_ty).to(tl.float32)
    if ROTATE:
        angle = token * (2 * HALF) + at
        cos_left = tl.load(cos_ptr + angle, mask=dims, other=0.0)[None, :]
        cos_right = tl.load(cos_ptr + angle + HALF, mask=dims, other=0.0)[None, :]
        sin_left = tl.load(sin_ptr + angle, mask=dims, other=0.0)[None, :]
        sin_right = tl.load(sin_ptr + angle + HALF, mask=dims, other=0.0)[None, :]
        new_left = left * cos_left + right * sin_left
        new_right = right * cos_right + left * sin_right
        left = tl.where(turns, new_left, left)
        right = tl.where(turns, new_right, right)

    q_at = (token * heads + head)[:, None] * (2 * HALF) + at[None, :]
    to_q = is_q[:, None] & dims[None, :]
    tl.store(q_ptr + q_at, left.to(q_ptr.dtype.element_ty), mask=to_q)
    tl.store(q_ptr + q_at + HALF, right.to(q_ptr.dtype.element_ty), mask=to_q)
    left = _kept(left, LARGEST)
    right = _kept(right, LARGEST)
    held = slot >= 0
    k_at = (slot + head - heads)[:, None] * (2 * HALF) + at[None, :]
    to_k = (is_k & held)[:, None] & dims[None, :]
    tl.store(k_ptr + k_at, left.to(k_ptr.dtype.element_ty), mask=to_k)
    tl.store(k_ptr + k_at + HALF, right.to(k_ptr.dtype.element_ty), mask=to_k)
    v_at = (slot + head - heads - kv_heads)[:, None] * (2 * HALF) + at[None, :]
    to_v = (is_v & held)[:, None] & dims[None, :]
    tl.store(v_ptr + v_at, left.to(v_ptr.dtype.element_ty), mask=to_v)
    tl.store(v_ptr + v_at + HALF, right.to(v_ptr.dtype.element_ty), mask=to_v)


@triton.jit
def write_kv_kernel(
    k_ptr,  # [tokens, width], tokens k_stride apart
    v_ptr,  # [tokens, width], tokens v_stride apart
    k_pages_ptr,  # [slots, width], written
    v_pages_ptr,  # [slots, width], written
    slots_ptr,  # int64 [tokens], −1: a row that only pads a graph, written nowhere
    k_stride,
    v_stride,
    width,  # kv_heads * head_dim
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,  # that the pages can hold; 0: as large as any
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + token)
    wait_for_previous(PDL)
    real = (at < width) & (slot >= 0)
    to = slot * width + at
    k = _kept(tl.load(k_ptr + token * k_stride + at, mask=real, other=0.0), LARGEST)
    v = _kept(tl.load(v_ptr + token * v_stride + at, mask=real, other=0.0), LARGEST)
    tl.store(k_pages_ptr + to, k.to(k_pages_ptr.dtype.element_ty), mask=real)
    tl.store(v_pages_ptr + to, v.to(v_pages_ptr.dtype.element_ty), mask=real)


def write_kv(
    k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slot_mapping: torch.Tensor
) -> None:
    """Compute `torch_attention.write_kv`."""
    kept = cache.k.dtype in FLOATS or cache.k.dtype in LARGEST
    if k.dtype not in FLOATS or v.dtype not in FLOATS or not kept:
        return torch_attention.write_kv(k, v, cache, slot_mapping)
    tokens, width = len(k), k.shape[1] * k.shape[2]
    if tokens == 0:
        return
    k, v = _side_by_side(k), _side_by_side(v)
    grid = (tokens, triton.cdiv(width, PIECE))
    start(
        "write_kv",
        write_kv_kernel,
        grid,
        (k, v, cache.k, cache.v, slot_mapping, k.stride(0), v.stride(0), width),
        {"BLOCK": PIECE, "LARGEST": LARGEST.get(cache.k.dtype, 0)},
        WRITE_WARPS,
        1,
        lambda: Cost(
            list(grid), tokens * width * 2 * (k.element_size() + cache.k.element_size()), 0
        ),
    )


def qkv_attention(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
    norms: QKNorms | None,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    dtype: torch.dtype | None = None,
    attend: Callable[..., torch.Tensor] = paged_attention,
) -> torch.Tensor:
    """Compute `torch_attention.qkv_attention`: one launch up to the cache, then `attend`."""
    dtype = dtype or qkv.dtype
    ours = takes(dtype, cache, spec) and qkv.dtype in (dtype, torch.float32)
    if not ours or not qkv.is_contiguous() or spec.head_dim % 2:
        return torch_attention.qkv_attention(qkv, angles, norms, cache, batch, spec, dtype)
    tokens, heads, kv_heads, dim = len(qkv), spec.num_heads, spec.num_kv_heads, spec.head_dim
    computed = computed_in(cache.k.dtype, dtype)
    q = torch.empty((tokens, heads, dim), dtype=computed, device=qkv.device)
    cos, sin = (qkv, qkv) if angles is None else (angle.contiguous() for angle in angles)
    grid = (tokens, triton.cdiv(heads + 2 * kv_heads, HEADS))
    start(
        "rotate_and_write",
        rotate_and_write_kernel,
        grid,
        (
            qkv,
            cos,
            sin,
            qkv if norms is None else norms.q_weight,
            qkv if norms is None else norms.k_weight,
            q,
            cache.k,
            cache.v,
            batch.slot_mapping,
            heads,
            kv_heads,
            0.0 if norms is None else norms.eps,
        ),
        rotate_constants(dim, angles is not None, norms is not None, cache.k.dtype),
        rotate_warps(dim),
        1,
        lambda: Cost(
            list(grid),
            qkv.nbytes + q.nbytes + 2 * tokens * kv_heads * dim * cache.k.element_size(),
            6 * qkv.numel(),
            why=f"tokens × tiles of {HEADS} heads",
        ),
    )
    return attend(q, cache, batch, spec, dtype).flatten(1)


def rotate_warps(head_dim: int) -> int:
    """Return as many threads as there are pieces of 8 values in half of a tile's heads."""
    return max(1, HEADS * triton.next_power_of_2(head_dim // 2) // (8 * 32))


def rotate_constants(
    head_dim: int, rotated: bool, normed: bool, pages: torch.dtype
) -> dict[str, int]:
    """Return the kernel's compile-time arguments. pages: the cache's dtype."""
    half = head_dim // 2
    return {
        "HALF": half,
        "WIDE": triton.next_power_of_2(half),
        "BLOCK": HEADS,
        "ROTATE": int(rotated),
        "NORM": int(normed),
        "LARGEST": LARGEST.get(pages, 0),
    }


def _side_by_side(x: torch.Tensor) -> torch.Tensor:
    """Return x: [tokens, heads, D], copied unless the heads of a token are adjacent."""
    _, head_stride, inner = x.stride()
    return x if inner == 1 and head_stride == x.shape[2] else x.contiguous()
