"""Count from its shapes what a launch of a native kernel moves and computes, for the record.

The first argument of each function is what the kernel returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from engine.kernels.cost import Cost

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache

FEW_ROWS = 64  # with matrix tiles; docs/archive/NOTES.md


def linear_cost(
    _: None, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, variant: str
) -> Cost:
    rows = len(x)
    what = (
        "reading the weights once is the whole cost"
        if rows <= FEW_ROWS
        else "multiplying takes longer than reading the weights"
    )
    return Cost(
        [y.shape[1]],
        weight.nbytes + x.nbytes + y.nbytes,
        2 * rows * weight.numel(),
        str(weight.dtype).removeprefix("torch."),
        f"{rows} rows: {what}; variant {variant}",
    )


def write_cost(_: None, k: torch.Tensor, v: torch.Tensor, cache: LayerCache) -> Cost:
    written = (k.numel() + v.numel()) * cache.k.element_size()
    return Cost([len(k)], k.nbytes + v.nbytes + written, 0)


def attention_cost(
    result: int | torch.Tensor,
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    rows: range,
    tiles: bool = False,
) -> Cost:
    """Count the cost of attention.

    result: the number of tasks that the kernel cut the rows into, or torch's tensor. tiles: chunks
    are multiplied on matrix tiles, in bf16.
    """
    tokens = read = pairs = 0  # positions read by a key head; query–position pairs of a query head
    for row in rows:
        queries, context = batch.query_lens[row], batch.context_lens_list[row]
        start, window = context - queries, spec.sliding_window or context
        tokens += queries
        read += context - max(start - window + 1, 0)
        pairs += sum(min(position + 1, window) for position in range(start, context))
    size = cache.k.element_size()
    moved = 2 * read * spec.num_kv_heads + 2 * tokens * spec.num_heads  # K and V; q and the result
    flops = 4 * pairs * spec.num_heads * spec.head_dim
    if isinstance(result, torch.Tensor):
        dtype, why = str(cache.k.dtype).removeprefix("torch."), f"a chunk of {tokens} tokens"
        return Cost([len(rows)], moved * spec.head_dim * size, flops, dtype, why)
    why = f"{len(rows)} rows × {spec.num_kv_heads} key heads, cut into {result} tasks"
    in_bf16 = tiles and tokens > len(rows) and cache.k.dtype is torch.bfloat16
    dtype = "bfloat16" if in_bf16 else "float32"
    return Cost([result], moved * spec.head_dim * size, flops, dtype, why)


def norm_cost(_: None, x: torch.Tensor, out: torch.Tensor, total: torch.Tensor) -> Cost:
    """Count a norm. total: what the residual became, or x itself if there was none."""
    moved = x.nbytes + out.nbytes + (0 if total is x else 2 * total.nbytes)
    return Cost([x.numel() // x.shape[-1]], moved, 4 * x.numel())


def embed_cost(_: None, table: torch.Tensor, out: torch.Tensor) -> Cost:
    return Cost([len(out)], out.numel() * table.element_size() + out.nbytes, out.numel())


def elementwise_cost(_: None, x: torch.Tensor, out: torch.Tensor) -> Cost:
    return Cost([len(x)], x.nbytes + out.nbytes, 4 * x.numel())
