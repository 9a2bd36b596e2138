"""One solution of step 12."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def paged_attention(
    query, keys, values, table, out, length, scale, BLOCK: tl.constexpr, DIM: tl.constexpr
):
    column = tl.arange(0, DIM)
    offset = tl.arange(0, BLOCK)
    q = tl.load(query + column) * scale
    greatest = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    result = tl.zeros([DIM], tl.float32)
    for entry in range(tl.cdiv(length, BLOCK)):
        block = tl.load(table + entry)
        there = entry * BLOCK + offset < length
        places = ((block * BLOCK + offset) * DIM)[:, None] + column[None, :]
        k = tl.load(keys + places, mask=there[:, None], other=0.0)
        v = tl.load(values + places, mask=there[:, None], other=0.0)
        scores = tl.where(there, tl.sum(k * q[None, :], 1), float("-inf"))
        new = tl.maximum(greatest, tl.max(scores, 0))
        shrink = tl.exp(greatest - new)
        weights = tl.exp(scores - new)
        total = total * shrink + tl.sum(weights, 0)
        result = result * shrink + tl.sum(weights[:, None] * v, 0)
        greatest = new
    tl.store(out + column, result / total)
