"""Step 12. Write paged attention in Triton.

One query reads the keys and values of its sequence, block by block, through the table. The scores
are never written down: a running maximum, a running sum and a running result are kept instead
(online softmax: Milakov and Gimelshein, 2018; FlashAttention: Dao et al., 2022).

The check runs it in Triton's interpreter, so no GPU is needed, and every line can be printed. The
loop over blocks is yours. Begin with engine/kernels/torch_attention.py, which says what is
computed; the engine's own kernel is engine/kernels/triton/paged_attention.py.
"""

# ruff: noqa: F841 - names for the loop that is yours
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def paged_attention(
    query,  # [DIM]
    keys,  # [blocks, BLOCK, DIM]
    values,  # [blocks, BLOCK, DIM]
    table,  # [entries]: the sequence's blocks in order
    out,  # [DIM]
    length,  # tokens of the sequence; slots after them hold anything, even NaN
    scale,
    BLOCK: tl.constexpr,
    DIM: tl.constexpr,
):
    column = tl.arange(0, DIM)
    offset = tl.arange(0, BLOCK)
    q = tl.load(query + column) * scale
    greatest = tl.full([], float("-inf"), tl.float32)
    total = tl.zeros([], tl.float32)
    result = tl.zeros([DIM], tl.float32)
    for entry in range(tl.cdiv(length, BLOCK)):
        block = tl.load(table + entry)
        # Load the keys of this block, [BLOCK, DIM], and score them with q. Positions from
        # `length` on must not count: score −inf, value 0. Then update greatest, total and result.
    tl.store(out + column, result / total)
