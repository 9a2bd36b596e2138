"""Compute paged attention in plain torch: the reference of all kernels, and the CPU's fallback.

Pages of a row lie anywhere in the cache, so its keys and values are gathered first (whole pages,
one memcpy each), then attended to. Rows with one token (decode) are computed together, padded to
the longest of them; the others (prefill, chunks) one by one. What depends only on the step (which
pages, which places count) is made by the first layer and kept in `batch.scratch`.

What pages hold beyond a row's end was written by another row, and may be NaN. 0 × NaN is NaN and
would spoil the sum, so what is gathered from there is overwritten with 0.

Grouped-query attention never copies keys: q is viewed as [rows, kv_heads, group, D], so that the
query heads that share a key head are the "sequence" of one small product with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from engine.kernels import torch_ops
from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache, QKNorms
from engine.kernels.fp8_cache import as_bytes, computed_in, stored_as
from engine.rounding import ceil_div


def write_kv(
    k: torch.Tensor, v: torch.Tensor, cache: LayerCache, slot_mapping: torch.Tensor
) -> None:
    """Write k, v: [tokens, kv_heads, D] to their slots. slot_mapping: int64 [tokens]."""
    for pages, new in ((cache.k, k), (cache.v, v)):
        new = as_bytes(stored_as(new, pages.dtype))
        as_bytes(pages).flatten(0, 1).index_copy_(0, slot_mapping, new)


def paged_attention(
    q: torch.Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec
) -> torch.Tensor:
    """Attend to what the cache holds, this step's own tokens included (`write_kv` comes first).

    q: [tokens, heads, D] → [tokens, heads, D] in the cache's dtype, or q's beside a cache of 8-bit
    floats. A token at position p sees positions max(0, p − window + 1) … p of its own row.
    """
    q = q.to(computed_in(cache.k.dtype, q.dtype))
    decode = batch.num_decode_rows
    if decode == batch.num_rows:
        return _decode(q, cache, batch, spec)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if decode:
        out[:decode] = _decode(q[:decode], cache, batch, spec)
    first = decode
    for row in range(decode, batch.num_rows):
        last = first + batch.query_lens[row]
        out[first:last] = chunk_attention(q[first:last], cache, batch, spec, row)
        first = last
    return out


def qkv_attention(
    qkv: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor] | None,
    norms: QKNorms | None,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Attend from the merged projection, and return the result in `dtype`.

    qkv: [tokens, (heads + 2 kv_heads) * D], q, then k, then v. norms: RMSNorm of each head of q and
    k. angles: cos, sin, as `torch_ops.rotate` takes them; None: nothing is rotated. dtype: the
    model's; None: qkv's, which may be wider and then stays so until q is attended with and k and v
    are stored. → [tokens, heads * D]
    """
    dtype = dtype or qkv.dtype
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    x = qkv.view(len(qkv), heads + 2 * kv_heads, dim)
    qk, v = x[:, : heads + kv_heads], x[:, heads + kv_heads :]
    if norms is not None:
        q, k = qk.split((heads, kv_heads), dim=1)
        q = torch_ops.rms_norm(q, norms.q_weight.to(qkv.dtype), norms.eps)
        k = torch_ops.rms_norm(k, norms.k_weight.to(qkv.dtype), norms.eps)
        qk = torch.cat((q, k), dim=1)
    if angles is not None:
        qk = torch_ops.rotate(qk, *angles)
    q, k = qk.split((heads, kv_heads), dim=1)
    write_kv(k, v, cache, batch.slot_mapping)
    q = q.to(computed_in(cache.k.dtype, dtype))
    return paged_attention(q, cache, batch, spec).to(dtype).flatten(1)


def _decode(
    q: torch.Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec
) -> torch.Tensor:
    """Attend for all decode rows at once. q: [rows, heads, D] → [rows, heads, D]."""
    rows, heads, head_dim = q.shape
    blocks, mask, stale = _decode_context(batch, spec.sliding_window, q.dtype)
    k, v = _gather(cache, blocks, rows, batch, q.dtype)  # [rows, places, kv_heads, D]
    k, v = (x.flatten(0, 1).index_fill_(0, stale, 0).view(x.shape).transpose(1, 2) for x in (k, v))
    # SDPA's "sequence" is the group of query heads on one key head: [rows, kv_heads, group, D]
    group = heads // spec.num_kv_heads
    q = q.view(rows, spec.num_kv_heads, group, head_dim)
    sinks = None if spec.sinks is None else spec.sinks.view(1, spec.num_kv_heads, group, 1)
    return _attend(q, k, v, mask, spec, sinks).reshape(rows, heads, head_dim)


def chunk_attention(
    q: torch.Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec, row: int
) -> torch.Tensor:
    """Attend for one row with several tokens. q: [queries, heads, D] → the same.

    q has the dtype that `paged_attention` computes in.
    """
    queries, heads, head_dim = q.shape
    group = heads // spec.num_kv_heads
    blocks, start = _chunk_pages(batch, spec.sliding_window, row)
    k, v = _gather(cache, blocks, 1, batch, q.dtype)  # [1, places, kv_heads, D]
    for x in (k, v):
        x[:, batch.context_lens_list[row] - start :] = 0
    # [kv_heads, group, n, D]: each group of query heads on its key head, repeated by stride 0
    q = q.view(queries, spec.num_kv_heads, group, head_dim).permute(1, 2, 0, 3)
    k, v = (x.permute(2, 0, 1, 3).expand(-1, group, -1, -1) for x in (k, v))
    whole = batch.context_lens_list[row] == queries  # no token was computed before
    within = spec.sliding_window is None or queries <= spec.sliding_window
    if whole and within and spec.soft_cap is None and spec.sinks is None:
        k, v = k[:, :, :queries], v[:, :, :queries]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=spec.scale)
    else:
        mask = _chunk_mask(batch, spec.sliding_window, q.dtype, row, start, k.shape[2])
        sinks = None if spec.sinks is None else spec.sinks.view(spec.num_kv_heads, group, 1, 1)
        out = _attend(q, k, v, mask, spec, sinks)
    return out.permute(2, 0, 1, 3).reshape(queries, heads, head_dim)


def _gather(
    cache: LayerCache, blocks: torch.Tensor, rows: int, batch: AttentionBatch, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather the pages of blocks [rows * pages], in order and in `dtype`.

    Returns k, v as [rows, places, kv_heads, D].

    They are overwritten by the next gather of this size. The layers share one workspace in a step,
    because fresh memory of some MB costs more (page faults) than the work done with it.
    """
    _, size, kv_heads, head_dim = cache.k.shape
    key = ("gathered", len(blocks), kv_heads, head_dim, cache.k.dtype)
    if key not in batch.scratch:
        shape = (2, len(blocks), size * kv_heads * head_dim)
        batch.scratch[key] = torch.empty(shape, dtype=cache.k.dtype, device=cache.k.device)
    k, v = batch.scratch[key]
    torch.index_select(as_bytes(cache.k).flatten(1), 0, blocks, out=as_bytes(k))
    torch.index_select(as_bytes(cache.v).flatten(1), 0, blocks, out=as_bytes(v))
    k, v = (x.to(dtype).view(rows, -1, kv_heads, head_dim) for x in (k, v))
    return k, v


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    spec: AttentionSpec,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute softmax(cap(q·k * scale) + mask)·v; a sink is one more score, without a value.

    q: [a, b, n, D]; k, v: [a, b, places, D]; mask: 0 or −inf, sinks: both broadcast to [a, b, n,
    places] and [a, b, n, 1].
    """
    if spec.soft_cap is None and sinks is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=spec.scale)
    scores = torch.matmul(q.float(), k.float().transpose(-1, -2)).mul_(spec.scale)
    if spec.soft_cap is not None:
        scores = scores.div_(spec.soft_cap).tanh_().mul_(spec.soft_cap)
    scores = scores.add_(mask)
    if sinks is not None:
        scores = torch.cat((scores, sinks.float().expand(*scores.shape[:-1], 1)), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[-2]]
    return torch.matmul(weights, v.float()).to(q.dtype)


# ------------------------------------------------------------- once per step, shared by all layers


def _decode_context(
    batch: AttentionBatch, window: int | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what attention of the decode rows reads: blocks, mask, and places to overwrite.

    They are: blocks int32 [rows * pages], mask [rows, 1, 1, pages * block_size], and the places,
    int64, that no row holds, counted through all pages. Where a row has fewer pages, its first one
    is repeated.
    """
    key = ("decode", window, dtype)
    if key not in batch.scratch:
        rows, size = batch.num_decode_rows, batch.block_size
        lengths = batch.context_lens_list[:rows]
        # for each row, the places that it holds, counted from the first page that it sees
        held = [n - (0 if window is None else max(n - window, 0) // size * size) for n in lengths]
        pages = ceil_div(max(held), size)
        ends = batch.context_lens[:rows, None].to(torch.int64)  # [rows, 1]
        if window is None:
            blocks = batch.block_tables[:rows, :pages]
            places = torch.arange(pages * size, device=ends.device)[None]
            hidden = places >= ends
        else:  # only the pages that the window touches, from a different first one in each row
            first = (ends - window).clamp_(min=0) // size
            index = first + torch.arange(pages, device=ends.device)
            last_column = batch.block_tables.shape[1] - 1
            blocks = batch.block_tables[:rows].gather(1, index.clamp(max=last_column))
            places = first * size + torch.arange(pages * size, device=ends.device)
            hidden = (places >= ends) | (places < ends - window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=ends.device)
        mask.masked_fill_(hidden, -math.inf)
        blocks = torch.where(places[:, ::size] >= ends, blocks[:, :1], blocks)
        stale = [
            row * pages * size + place
            for row, n in enumerate(held)
            for place in range(n, pages * size if n < size else ceil_div(n, size) * size)
        ]
        places_of_none = torch.tensor(stale, dtype=torch.int64, device=ends.device)
        batch.scratch[key] = blocks.reshape(-1), mask[:, None, None], places_of_none
    return batch.scratch[key]


def _chunk_pages(batch: AttentionBatch, window: int | None, row: int) -> tuple[torch.Tensor, int]:
    """Return (blocks int32 [pages] that the row's chunk sees, position of their first place)."""
    end, size = batch.context_lens_list[row], batch.block_size
    start = end - batch.query_lens[row]
    first = 0 if window is None else max(start - window + 1, 0) // size
    return batch.block_tables[row, first : ceil_div(end, size)], first * size


def _chunk_mask(
    batch: AttentionBatch,
    window: int | None,
    dtype: torch.dtype,
    row: int,
    start: int,
    places: int,
) -> torch.Tensor:
    """Return a mask [queries, places]: 0 where a query sees a place and −inf elsewhere.

    The first place is at position `start` of the row.
    """
    key = ("chunk", row, window, dtype)
    if key not in batch.scratch:
        end, queries = batch.context_lens_list[row], batch.query_lens[row]
        device = batch.block_tables.device
        asks = torch.arange(end - queries, end, device=device)[:, None]
        holds = torch.arange(start, start + places, device=device)[None]
        hidden = holds > asks
        if window is not None:
            hidden |= holds <= asks - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        batch.scratch[key] = mask.masked_fill_(hidden, -math.inf)
    return batch.scratch[key]
