"""Define the attention kernels, and how their work is cut; `paged_attention.py` launches them.

They compute what `torch_attention.paged_attention` does, and read pages in place.

One kernel serves decode, prefill and chunks. Its unit of work is a tile of query rows times all
keys that any of them sees. A tile's rows are (tokens × query heads of one key head), so that a key
is read once for its whole group and even one token fills a tensor core's 16 rows.

- Decode (`DECODE`): program (row, key head, split). A row is one token. When rows × key heads are
  too few to fill the device, each context is cut into `splits` segments; every program keeps its
  own maximum and sum, and `_merge_kernel` joins them. Grid and arguments depend only on the number
  of rows, never on the lengths, which are read on the device: a CUDA graph can replay it. Rows
  that only pad a graph have a context of 0 and cost one empty program.
- Prefill and chunks: program (tile, key head). A row of n tokens has ceil(n / Q) tiles; the row of
  a tile is found by bisection in `query_start`, so nothing is sent to the device for it. The grid
  is the bound tokens // Q + rows; programs beyond the last tile return at once.

Tiles of keys (`BLOCK_N`) are independent of the size of a page: each position looks up its page.
Softmax runs online in base 2 (scale and log2 e are one factor), in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from engine.kernels.triton.start import let_next_start, wait_for_previous

MAX_SPLITS = 16
MERGE_WARPS = 4
SPLIT_TOKENS = 256  # a shorter segment isn't worth the merge
FILLED = 24  # most programs for each multiprocessor that splitting makes
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["first_row", "last_row", "table_width"])
def attention_kernel(
    q_ptr,  # [tokens, heads, HEAD_DIM], tokens q_stride apart, in the dtype to compute in
    k_ptr,  # [blocks, PAGE, kv_heads, HEAD_DIM], of the same dtype or in 8 bits
    v_ptr,  # the same
    out_ptr,  # [tokens, heads, HEAD_DIM], contiguous; not written when SPLIT
    part_ptr,  # fp32 [rows, heads, splits, HEAD_DIM], unnormalised sums; written when SPLIT
    stats_ptr,  # fp32 [rows, heads, splits, 2], maximum (log2) and sum; written when SPLIT
    tables_ptr,  # int32 [rows, table_width]
    query_start_ptr,  # int32 [rows + 1]
    context_lens_ptr,  # int32 [rows]
    sinks_ptr,  # fp32 [heads]; read when SINKS
    scale_log2,  # scores are q·k * scale_log2, in base 2
    soft_cap,  # read when SOFT_CAP
    window,  # tokens that a query sees, itself included; read when WINDOW
    first_row,  # rows before it are another launch's
    last_row,  # one past the last
    q_stride,
    table_width,
    kv_heads,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,  # HEAD_DIM, rounded up to a power of two
    GROUP: tl.constexpr,  # query heads on one key head
    PAGE: tl.constexpr,  # tokens in a block
    BLOCK_M: tl.constexpr,  # rows of a tile: BLOCK_M // GROUP tokens × GROUP heads
    BLOCK_N: tl.constexpr,  # keys of a tile
    DECODE: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFT_CAP: tl.constexpr,
    SINKS: tl.constexpr,
    MIXED: tl.constexpr,  # all rows are here: those of the other launch are left to it
    PDL: tl.constexpr = 0,
):
    let_next_start(PDL)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    if DECODE:
        row = first_row + tl.program_id(0)
        row_start = tl.load(query_start_ptr + row)
        tile = 0
    else:
        # The last row whose first tile is not after this one.
        base = tl.load(query_start_ptr + first_row)
        low = first_row
        high = last_row - 1
        while low < high:
            middle = (low + high + 1) // 2
            begins = (tl.load(query_start_ptr + middle) - base) // TOKENS + middle - first_row
            if begins <= tl.program_id(0):
                low = middle
            else:
                high = middle - 1
        row = low
        row_start = tl.load(query_start_ptr + row)
        tile = tl.program_id(0) - ((row_start - base) // TOKENS + row - first_row)
    row_tokens = tl.load(query_start_ptr + row + 1) - row_start
    context = tl.load(context_lens_ptr + row)
    wait_for_previous(PDL)
    idle = tile * TOKENS >= row_tokens  # the grid is a bound
    if MIXED:
        if DECODE:
            idle = idle | (row_tokens != 1)
        else:
            idle = idle | (row_tokens == 1)
    if idle:
        return
    first_position = context - row_tokens + tile * TOKENS  # of the tile's first token

    m = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, DIM)
    token = m // GROUP  # of the tile
    head = kv_head * GROUP + m % GROUP
    real = (token < TOKENS) & (tile * TOKENS + token < row_tokens)
    position = first_position + token
    place = (row_start + tile * TOKENS + token).to(tl.int64)  # among the step's tokens
    inside = real[:, None] & (dims < HEAD_DIM)[None, :]
    q = tl.load(
        q_ptr + place[:, None] * q_stride + head[:, None] * HEAD_DIM + dims[None, :],
        mask=inside,
        other=0.0,
    )

    begin = 0
    end = tl.minimum(first_position + TOKENS, context)
    if WINDOW:
        begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
    if SPLIT:
        segment = tl.cdiv(tl.cdiv(end - begin, tl.num_programs(2)), BLOCK_N) * BLOCK_N
        begin += split * segment
        end = tl.minimum(begin + segment, end)

    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, DIM], tl.float32)
    if SINKS:  # noqa: SIM102 (decided by the compiler; the inner one by each program)
        if split == 0:  # a score like others, without a value
            best = tl.load(sinks_ptr + head, mask=real, other=0.0) * LOG2_E
            total += 1.0

    n = tl.arange(0, BLOCK_N)
    table_ptr = tables_ptr + row.to(tl.int64) * table_width
    head_base = kv_head * HEAD_DIM
    token_stride = kv_heads * HEAD_DIM
    for first in range(begin, end, BLOCK_N):
        at = first + n
        held = at < end
        block = tl.load(table_ptr + at // PAGE, mask=held, other=0).to(tl.int64)
        slot = (block * PAGE + at % PAGE) * token_stride + head_base
        keys = tl.load(
            k_ptr + slot[None, :] + dims[:, None],
            mask=held[None, :] & (dims < HEAD_DIM)[:, None],
            other=0.0,
        ).to(q.dtype)
        scores = tl.dot(q, keys, input_precision="ieee") * scale_log2
        if SOFT_CAP:
            turned = scores * (2.0 / (soft_cap * LOG2_E))
            tanh = 1.0 - 2.0 / (tl.exp(turned) + 1.0)
            scores = tanh * (soft_cap * LOG2_E)
        seen = held[None, :] & (at[None, :] <= position[:, None])
        if WINDOW:
            seen = seen & (at[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        # A row that sees nothing here keeps -inf as its maximum: -inf − -inf would be NaN.
        finite = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(best - finite)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(
            v_ptr + slot[:, None] + dims[None, :],
            mask=held[:, None] & (dims < HEAD_DIM)[None, :],
            other=0.0,
        ).to(q.dtype)
        mixed = mixed * shrink[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")
        best = new_best

    num_heads = kv_heads * GROUP
    if SPLIT:  # decode: the tile has one token
        part = (row * num_heads + head).to(tl.int64) * tl.num_programs(2) + split
        tl.store(part_ptr + part[:, None] * HEAD_DIM + dims[None, :], mixed, mask=inside)
        tl.store(stats_ptr + part * 2, best, mask=real)
        tl.store(stats_ptr + part * 2 + 1, total, mask=real)
    else:
        mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
        out = (place * num_heads + head) * HEAD_DIM
        tl.store(
            out_ptr + out[:, None] + dims[None, :],
            mixed.to(out_ptr.dtype.element_ty),
            mask=inside,
        )


@triton.jit
def merge_kernel(
    part_ptr,  # fp32 [rows, heads, SPLITS, HEAD_DIM]
    stats_ptr,  # fp32 [rows, heads, SPLITS, 2]
    out_ptr,  # [rows, heads, HEAD_DIM]
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,  # HEAD_DIM, rounded up to a power of two
    SPLITS: tl.constexpr,  # a power of two
    PDL: tl.constexpr = 0,
):
    """Join the segments of one row and head.

    Grid: one program for each of rows × heads. Each reads SPLITS * HEAD_DIM floats, a few KB, which
    the L2 cache still holds.
    """
    let_next_start(PDL)
    wait_for_previous(PDL)
    pair = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    dims = tl.arange(0, DIM)
    best = tl.load(stats_ptr + (pair * SPLITS + splits) * 2)
    total = tl.load(stats_ptr + (pair * SPLITS + splits) * 2 + 1)
    greatest = tl.max(best, 0)
    greatest = tl.where(greatest == float("-inf"), 0.0, greatest)  # a row that only pads a graph
    weight = tl.exp2(best - greatest)
    part = tl.load(
        part_ptr + (pair * SPLITS + splits)[:, None] * HEAD_DIM + dims[None, :],
        mask=(dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    total = tl.sum(total * weight, 0)
    mixed = tl.sum(part * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(
        out_ptr + pair * HEAD_DIM + dims, mixed.to(out_ptr.dtype.element_ty), mask=dims < HEAD_DIM
    )


class Tile(NamedTuple):
    """State how a launch is cut. Chosen so that shared memory fits the smallest device (99 KiB)."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


class Extras(NamedTuple):
    """State which of the less usual parts a layer has."""

    window: bool = False
    soft_cap: bool = False
    sinks: bool = False


def tile_for(
    dtype: torch.dtype, head_dim: int, group: int, decode: bool, stored: torch.dtype | None = None
) -> Tile:
    """Choose the tile. dtype: computed in. stored: the cache's, where it is another.

    Decode depends on the bytes in flight, and on how often the warps wait for each other: few rows,
    many keys. On an H200 64 keys in two stages read 92 % of the copy rate where 32 in three read
    84, and 8-bit pages take 204 µs where those take 255 (docs/archive/NOTES.md). Prefill
    depends on reuse: many rows. fp32 products run on ordinary cores and want small tiles.
    """
    dim = power(head_dim)
    rows = max(16, power(group))
    if dtype == torch.float32:
        return Tile(rows, 16, 4, 1)  # 32 keys, or a second stage, would not fit the registers
    if decode:
        if rows > 16:  # not tried on a card; two stages would spill on sm_100
            return Tile(rows, 64 if dim <= 64 else 32, 4, 3 if dim <= 128 else 2)
        if stored not in (None, dtype) and dim <= 128:
            return Tile(rows, 32, 1, 4)  # half the bytes, and as many numbers to convert
        return Tile(rows, 64 if dim <= 128 else 32, 4, 2)
    if dim > 128:
        return Tile(max(64, rows), 32, 8, 2)
    if dim > 64:  # the fp32 sums of 64 rows × 128 dimensions don't fit 4 warps beside the rest
        keys = 64 if stored in (None, dtype) else 32  # beside 8-bit ones stand their bf16 selves
        return Tile(max(128, rows), keys, 8, 2)
    return Tile(max(64, rows), 64, 4, 2)


def splits_for(pairs: int, processors: int, max_context: int) -> int:
    """Return the number of segments of each context, a power of two.

    pairs: rows × key heads. Each keeps one multiprocessor partly busy, and waits for memory most of
    the time: with many more programs than fit at once, those with short contexts make room for
    others.
    """
    splits = 1
    while (
        splits < MAX_SPLITS
        and pairs * splits * 2 <= FILLED * processors
        and max_context >= 2 * splits * SPLIT_TOKENS
    ):
        splits *= 2
    return splits


def constants(
    tile: Tile,
    head_dim: int,
    group: int,
    page: int,
    decode: bool,
    split: bool,
    extras: Extras,
    mixed: bool = False,
) -> dict[str, int]:
    """Return the kernel's compile-time arguments. Flags are 0 or 1."""
    return {
        "HEAD_DIM": head_dim,
        "DIM": power(head_dim),
        "GROUP": group,
        "PAGE": page,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "DECODE": int(decode),
        "SPLIT": int(split),
        "WINDOW": int(extras.window),
        "SOFT_CAP": int(extras.soft_cap),
        "SINKS": int(extras.sinks),
        "MIXED": int(mixed),
    }


def merge_constants(head_dim: int, splits: int) -> dict[str, int]:
    """Return the merging kernel's compile-time arguments."""
    return {"HEAD_DIM": head_dim, "DIM": power(head_dim), "SPLITS": splits}


def power(n: int) -> int:
    """Return the next power of two that tl.dot can reduce over."""
    return max(16, triton.next_power_of_2(n))
