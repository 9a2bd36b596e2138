"""Launch the kernels of `attention.py`: `torch_attention.paged_attention` in Triton.

One launch for the rows with one token, two when their contexts are split. One for all others, or
torch's attention for whole prompts, from a measured length on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from engine.kernels import torch_attention
from engine.kernels.cost import Cost, attention_work
from engine.kernels.fp8_cache import LARGEST, computed_in
from engine.kernels.launch import launch
from engine.kernels.triton.attention import (
    LOG2_E,
    MERGE_WARPS,
    Extras,
    Tile,
    attention_kernel,
    constants,
    merge_constants,
    merge_kernel,
    splits_for,
    tile_for,
)
from engine.kernels.triton.start import FLOATS, start
from engine.trace.wording import count

if TYPE_CHECKING:
    from engine.kernels.batch import AttentionBatch, AttentionSpec, LayerCache

MAX_HEAD_DIM = 256
NEVER = sys.maxsize
SDPA_FROM = 2048
"""Prompts of a step are left to torch's SDPA if all of them are whole and of at least so many
tokens, which may be `NEVER`. `make gpu` measures both at several lengths; what it finds is entered
here. On an H200 512 tokens take 20 and 21 µs, 2,048 take 179 and 102."""
INTERPRETER_PROCESSORS = 8  # stands for a device's multiprocessors where there is no device


def takes(q_dtype: torch.dtype, cache: LayerCache, spec: AttentionSpec) -> bool:
    """Return whether the kernel is built for this layer; plain torch computes the others."""
    kept = cache.k.dtype in FLOATS or cache.k.dtype in LARGEST
    return q_dtype in FLOATS and kept and spec.head_dim <= MAX_HEAD_DIM


def reads_lengths(head_dim: int) -> bool:
    """Return whether lengths may stay on the device (see `Kernels`).

    Where torch would compute instead, lengths must be on the host.
    """
    return head_dim <= MAX_HEAD_DIM and head_dim % 2 == 0


def wants_lengths(lengths: Sequence[int], contexts: Sequence[int]) -> bool:
    """Return whether torch's SDPA wants lengths (see `Kernels`).

    lengths: tokens of each prompt in this step. contexts: all its tokens.
    """
    return _for_sdpa(lengths, contexts, SDPA_FROM)


def paged_attention(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    out_dtype: torch.dtype | None = None,
    sdpa_from: int | None = None,
    as_prompts: bool = False,
) -> torch.Tensor:
    """Compute `torch_attention.paged_attention`.

    q: [tokens, heads, D] → [tokens, heads, D] in `out_dtype`, by default the one that is computed
    in. sdpa_from: replaces `SDPA_FROM`. as_prompts: a row with one token is computed as those with
    several are, so that what it gets depends on nothing but its own context.
    """
    computed = computed_in(cache.k.dtype, q.dtype)
    out_dtype = out_dtype or computed
    if not takes(q.dtype, cache, spec):
        return torch_attention.paged_attention(q, cache, batch, spec).to(out_dtype)
    q = q.to(computed)
    if q.stride(2) != 1 or q.stride(1) != spec.head_dim:
        q = q.contiguous()
    out = torch.empty(q.shape, dtype=out_dtype, device=q.device)
    rows = batch.num_rows
    decode, first = batch.num_decode_rows, batch.num_decode_rows
    if batch.lengths_on_device:  # any row may be of either kind
        decode, first, sdpa_from = rows, 0, NEVER
    if as_prompts:
        decode, first, sdpa_from = 0, 0, NEVER
    mixed = batch.lengths_on_device and not as_prompts
    if decode:
        _decode(q, cache, batch, spec, out, decode)
    if _sdpa_takes(batch, spec, SDPA_FROM if sdpa_from is None else sdpa_from):
        _prompts_by_sdpa(q, cache, batch, spec, out)
    elif first < rows:
        tile = tile_for(q.dtype, spec.head_dim, _group(spec), False, cache.k.dtype)
        tokens = sum(batch.query_lens[first:])
        tiles = tokens // (tile.block_m // _group(spec)) + rows - first
        why = f"{tokens} tokens of {rows - first} rows in tiles of {tile.block_m} query rows"
        grid = (tiles, spec.num_kv_heads, 1)
        none = out  # a pointer that isn't used
        of = range(first, rows)
        _run(grid, tile, of, False, mixed, why, q, cache, out, none, none, batch, spec)
    return out


def _for_sdpa(lengths: Sequence[int], contexts: Sequence[int], sdpa_from: int) -> bool:
    """Return whether there are prompts, all of them whole and long enough."""
    return bool(lengths) and min(lengths) >= sdpa_from and list(lengths) == list(contexts)


def _sdpa_takes(batch: AttentionBatch, spec: AttentionSpec, sdpa_from: int) -> bool:
    """Return whether the prompts suit SDPA, and each token of this layer sees all before it."""
    lengths = batch.query_lens[batch.num_decode_rows :]
    return (
        _for_sdpa(lengths, batch.context_lens_list[batch.num_decode_rows :], sdpa_from)
        and spec.soft_cap is None
        and spec.sinks is None
        and (spec.sliding_window is None or max(lengths) <= spec.sliding_window)
    )


def _prompts_by_sdpa(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    out: torch.Tensor,
) -> None:
    """Attend for each row with several tokens: gather its pages, then call torch once."""
    first = batch.num_decode_rows
    for row in range(batch.num_decode_rows, batch.num_rows):
        last = first + batch.query_lens[row]
        why = f"a whole prompt of {last - first} tokens, where torch's SDPA is faster"
        out[first:last] = launch(
            "paged_attention",
            "torch",
            torch_attention.chunk_attention,
            (q[first:last], cache, batch, spec, row),
            lambda _made, *facts: _cost([], q, cache, batch, spec, *facts),
            range(row, row + 1),
            why,
        )
        first = last


def _decode(
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    out: torch.Tensor,
    rows: int,
) -> None:
    """Attend for the first `rows` rows, those with one token.

    One launch, or two when contexts are split.
    """
    dim, heads = spec.head_dim, spec.num_heads
    tile = tile_for(q.dtype, dim, _group(spec), True, cache.k.dtype)
    pairs = rows * spec.num_kv_heads
    longest = min(batch.max_context_len, spec.sliding_window or batch.max_context_len)
    splits = splits_for(pairs, _processors(q.device), longest)
    why = f"{count(rows, 'row')} × {count(spec.num_kv_heads, 'key head')}"
    grid = (rows, spec.num_kv_heads, splits)
    mixed = batch.lengths_on_device
    if splits == 1:
        _run(grid, tile, range(rows), True, mixed, why, q, cache, out, out, out, batch, spec)
        return
    why += f" leave multiprocessors idle: each context in {splits} segments"
    key = ("split", rows, heads, splits, dim)
    if key not in batch.scratch:
        shape = (rows, heads, splits)
        part = torch.empty((*shape, dim), dtype=torch.float32, device=q.device)
        stats = torch.empty((*shape, 2), dtype=torch.float32, device=q.device)
        batch.scratch[key] = part, stats
    part, stats = batch.scratch[key]
    _run(grid, tile, range(rows), True, mixed, why, q, cache, out, part, stats, batch, spec)
    start(
        "merge_segments",
        merge_kernel,
        (rows * heads,),
        (part, stats, out),
        merge_constants(dim, splits),
        MERGE_WARPS,
        1,
        lambda: Cost([rows * heads], part.nbytes + stats.nbytes + out.nbytes, 4 * part.numel()),
    )


def _run(
    grid: tuple[int, int, int],
    tile: Tile,
    rows: range,
    decode: bool,
    mixed: bool,
    why: str,
    q: torch.Tensor,
    cache: LayerCache,
    out: torch.Tensor,
    part: torch.Tensor,
    stats: torch.Tensor,
    batch: AttentionBatch,
    spec: AttentionSpec,
) -> None:
    extras = Extras(
        spec.sliding_window is not None, spec.soft_cap is not None, spec.sinks is not None
    )
    sinks = q if spec.sinks is None else spec.sinks.float().contiguous()
    start(
        "paged_attention",
        attention_kernel,
        grid,
        (
            q,
            cache.k,
            cache.v,
            out,
            part,
            stats,
            batch.block_tables,
            batch.query_start,
            batch.context_lens,
            sinks,
            spec.scale * LOG2_E.value,
            spec.soft_cap or 0.0,
            spec.sliding_window or 0,
            rows.start,
            rows.stop,
            q.stride(0),
            batch.block_tables.stride(0),
            spec.num_kv_heads,
        ),
        constants(
            tile,
            spec.head_dim,
            _group(spec),
            batch.block_size,
            decode,
            grid[2] > 1,
            extras,
            mixed,
        ),
        tile.num_warps,
        tile.num_stages,
        lambda: _cost(grid, q, cache, batch, spec, rows, why),
    )


def _group(spec: AttentionSpec) -> int:
    return spec.num_heads // spec.num_kv_heads


@lru_cache(maxsize=8)
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETER_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _cost(
    grid: Sequence[int],
    q: torch.Tensor,
    cache: LayerCache,
    batch: AttentionBatch,
    spec: AttentionSpec,
    rows: range,
    why: str,
) -> Cost:
    work = attention_work(q, cache, batch, spec, rows)
    dtype = str(q.dtype).removeprefix("torch.")
    return Cost(list(grid), work.num_bytes, work.flops, dtype, why)
