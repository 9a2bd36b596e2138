"""Copy whole KV blocks in Triton, all layers in one launch: `KVCache.copy` and swaps.

Grid: (pairs, tensors). Copy-on-write moves a few blocks, each in 2 × layers tensors: launched one
tensor at a time, starting would take longer than moving. The addresses of the tensors come as
arrays of numbers, made once. For a swap, one of the two is pinned host memory, which a GPU reads
and writes over the bus under the same addresses as the host (unified virtual addressing).

Programs run in any order, so no block may be both read and written in a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.kernels.cost import Cost
from engine.kernels.triton.start import let_next_start, start, wait_for_previous

PIECE = 1024
NUM_WARPS = 4


@triton.jit
def copy_blocks_kernel(
    sources_ptr,  # int64 [tensors], addresses of int64 [blocks, words]
    targets_ptr,  # the same
    words_ptr,  # int64 [tensors], eight-byte words of a block
    pairs_ptr,  # int64 [pairs, 2], from, to
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    let_next_start(PDL)
    wait_for_previous(PDL)
    source = tl.load(pairs_ptr + tl.program_id(0) * 2)
    target = tl.load(pairs_ptr + tl.program_id(0) * 2 + 1)
    words = tl.load(words_ptr + tl.program_id(1))
    from_ptr = tl.load(sources_ptr + tl.program_id(1)).to(tl.pointer_type(tl.int64))
    to_ptr = tl.load(targets_ptr + tl.program_id(1)).to(tl.pointer_type(tl.int64))
    for first in range(0, words, BLOCK):
        at = first + tl.arange(0, BLOCK)
        moved = tl.load(from_ptr + source * words + at, mask=at < words, other=0)
        tl.store(to_ptr + target * words + at, moved, mask=at < words)


def copy_blocks(
    sources: torch.Tensor, targets: torch.Tensor, words: torch.Tensor, pairs: torch.Tensor
) -> None:
    """Copy blocks between pools, or inside one. All arguments are on the device.

    sources, targets, words: int64 [tensors], see the kernel; of one pool to copy inside it. pairs:
    int64 [pairs, 2], (source, destination), no block read and written.
    """
    grid = (len(pairs), len(words))
    start(
        "copy_blocks",
        copy_blocks_kernel,
        grid,
        (sources, targets, words, pairs),
        {"BLOCK": PIECE},
        NUM_WARPS,
        1,
        lambda: Cost(list(grid), 16 * len(pairs) * int(words.sum()), 0, why="pairs × tensors"),
    )
