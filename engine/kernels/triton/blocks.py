"""Copy of whole KV blocks in Triton: `KVCache.copy` for all layers in one launch.

Grid: (pairs, tensors). Copy-on-write moves a few blocks, each in 2 × layers tensors: launched one
tensor at a time, starting would take longer than moving. The addresses of the tensors come as an
array of numbers, made once.

Programs run in any order, so no block may be both read and written in a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.launch import Cost
from engine.kernels.triton.start import start

PIECE = 1024
NUM_WARPS = 4


@triton.jit
def copy_blocks_kernel(
    addresses_ptr,  # int64 [tensors], of int64 [blocks, words]
    words_ptr,  # int64 [tensors], eight-byte words of a block
    pairs_ptr,  # int64 [pairs, 2], from, to
    BLOCK: tl.constexpr,
):
    source = tl.load(pairs_ptr + tl.program_id(0) * 2)
    target = tl.load(pairs_ptr + tl.program_id(0) * 2 + 1)
    words = tl.load(words_ptr + tl.program_id(1))
    pages_ptr = tl.load(addresses_ptr + tl.program_id(1)).to(tl.pointer_type(tl.int64))
    for first in range(0, words, BLOCK):
        at = first + tl.arange(0, BLOCK)
        moved = tl.load(pages_ptr + source * words + at, mask=at < words, other=0)
        tl.store(pages_ptr + target * words + at, moved, mask=at < words)


def copy_blocks(addresses: torch.Tensor, words: torch.Tensor, pairs: torch.Tensor) -> None:
    """addresses, words: int64 [tensors], see the kernel. pairs: int64 [pairs, 2], (source,
    destination), no block in both columns. All on the device."""
    grid = (len(pairs), len(addresses))
    start(
        "copy_blocks",
        copy_blocks_kernel,
        grid,
        (addresses, words, pairs),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), 16 * len(pairs) * int(words.sum()), 0, why="pairs × tensors"),
    )
