"""Hold what one launch of a kernel costs, as counted from its shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache


class Cost(NamedTuple):
    """Describe a launch, as counted from its shapes."""

    grid: list[int]  # number of pieces that the work was cut into
    num_bytes: int  # read and written
    flops: int
    flops_type: str = "float32"  # dtype of the products: "float32", "bfloat16" or "int8"
    why: str = ""  # why this grid, or this variant
    # Only compiled kernels have these:
    constexprs: dict[str, int] | None = None
    num_warps: int = 0
    num_stages: int = 0
    registers: int = 0  # of one thread
    shared_bytes: int = 0  # of one program


class AttentionWork(NamedTuple):
    """Count what attention moves and computes, whichever kernel does it."""

    tokens: int  # queries
    num_bytes: int  # each key and value that a row sees is read once, q and the result once
    flops: int  # 4 for each pair of query and position, head and dimension


def attention_work(
    q: torch.Tensor, cache: LayerCache, batch: AttentionBatch, spec: AttentionSpec, rows: range
) -> AttentionWork:
    """Count the work for some rows of a step. q: of all its tokens, in the dtype it has."""
    tokens = read = pairs = 0
    for row in rows:
        queries, context = batch.query_lens[row], batch.context_lens_list[row]
        first, window = context - queries, spec.sliding_window or context
        tokens += queries
        read += context - max(first - window + 1, 0)
        pairs += sum(min(position + 1, window) for position in range(first, context))
    moved = 2 * read * spec.num_kv_heads * cache.k.element_size()
    moved += 2 * tokens * spec.num_heads * q.element_size()
    flops = 4 * pairs * spec.num_heads * spec.head_dim
    return AttentionWork(tokens, moved * spec.head_dim, flops)
