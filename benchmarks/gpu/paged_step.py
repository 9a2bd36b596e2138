"""Make a random step over random pages, to test and time attention kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from engine.kernels.batch import AttentionBatch, LayerCache
from engine.rounding import ceil_div

PAGE = 16  # tokens, of a `decode_step`
Rows = list[tuple[int, int]]  # (tokens in the cache before, tokens of this step); decode rows first


def make_step(
    rows: Rows, kv_heads: int, head_dim: int, page: int, dtype: torch.dtype, seed: int = 0
) -> tuple[LayerCache, AttentionBatch]:
    """Make pages full of numbers, in shuffled order; unused places are NaN, so that reads show."""
    generator = torch.Generator().manual_seed(seed)
    needs = [ceil_div(old + new, page) for old, new in rows]
    blocks = sum(needs) + 3
    order = torch.randperm(blocks, generator=generator)
    shape = (blocks, page, kv_heads, head_dim)
    k, v = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    tables = torch.zeros(len(rows), max(max(needs), 1) + 1, dtype=torch.int32)
    held = torch.zeros(blocks, page, dtype=torch.bool)
    slots, first = [], 0
    for i, (old, new) in enumerate(rows):
        mine = order[first : first + needs[i]]
        first += needs[i]
        tables[i, : needs[i]] = mine.int()
        positions = torch.arange(old + new)
        held[mine[positions // page], positions % page] = True
        slots.append(mine[positions // page] * page + positions % page)
    k[~held], v[~held] = float("nan"), float("nan")
    lengths, contexts = [new for _, new in rows], [old + new for old, new in rows]
    batch = AttentionBatch(
        positions=torch.cat([torch.arange(old, old + new) for old, new in rows]),
        slot_mapping=torch.cat([s[old:] for s, (old, _) in zip(slots, rows)]),
        block_tables=tables,
        query_start=torch.tensor([0, *lengths]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        num_decode_rows=sum(length == 1 for length in lengths),
        block_size=page,
        query_lens=lengths,
        context_lens_list=contexts,
        max_context_len=max(contexts),
    )
    return LayerCache(k, v), batch


def decode_step(
    contexts: torch.Tensor, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[LayerCache, AttentionBatch]:
    """Make a step with one token for each row, over random pages in shuffled order.

    contexts: int32 [rows], on the host: tokens of each row, this one included. Made on the device:
    the host, where `make_step` draws, takes seconds for each gigabyte.
    """
    rows, longest = len(contexts), int(contexts.max())
    width = ceil_div(longest, PAGE)
    shape = (rows * width, PAGE, kv_heads, head_dim)
    k, v = (torch.empty(shape, dtype=dtype, device=device).normal_() for _ in range(2))
    batch = AttentionBatch(
        positions=(contexts - 1).long().to(device),
        slot_mapping=torch.zeros(rows, dtype=torch.int64, device=device),
        block_tables=torch.randperm(len(k), device=device).int().view(rows, width),
        query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
        context_lens=contexts.to(device),
        num_decode_rows=rows,
        block_size=PAGE,
        query_lens=[1] * rows,
        context_lens_list=contexts.tolist(),
        max_context_len=longest,
    )
    return LayerCache(k, v), batch


def captured(batch: AttentionBatch, tokens: int, rows: int) -> AttentionBatch:
    """Return the step as one that is captured for `tokens` more tokens and `rows` more rows.

    The step's own tokens and rows are known from tensors only. Nobody reads what the kernels
    compute for the padding.
    """
    lengths = [*batch.query_lens, *([0] * rows)]
    all_tokens, longest = sum(lengths) + tokens, batch.block_tables.shape[1] * batch.block_size
    start, end = batch.query_start, batch.query_start[-1:]
    return AttentionBatch(
        positions=F.pad(batch.positions, (0, tokens)),
        slot_mapping=F.pad(batch.slot_mapping, (0, tokens), value=-1),
        block_tables=F.pad(batch.block_tables, (0, 0, 0, rows)),
        query_start=torch.cat((start, end.expand(rows))),
        context_lens=F.pad(batch.context_lens, (0, rows)),
        num_decode_rows=0,
        block_size=batch.block_size,
        query_lens=[all_tokens // len(lengths)] * (len(lengths) - 1)
        + [all_tokens - all_tokens // len(lengths) * (len(lengths) - 1)],
        context_lens_list=[longest] * len(lengths),
        max_context_len=longest,
        lengths_on_device=True,
    )


def finite(cache: LayerCache) -> LayerCache:
    """Return the same pages with 0 for NaN: the torch reference weights unused places with 0."""
    return LayerCache(cache.k.nan_to_num(0.0), cache.v.nan_to_num(0.0))
