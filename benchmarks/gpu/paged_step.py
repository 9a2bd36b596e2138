"""A random step over random pages: for tests of attention kernels, and for their speed."""

from __future__ import annotations

import torch

from engine.layers.attention_batch import AttentionBatch, LayerCache

Rows = list[tuple[int, int]]  # (tokens in the cache before, tokens of this step); decode rows first


def make_step(
    rows: Rows, kv_heads: int, head_dim: int, page: int, dtype: torch.dtype, seed: int = 0
) -> tuple[LayerCache, AttentionBatch]:
    """Pages full of numbers, in shuffled order; what no row holds is NaN, to be found if read."""
    generator = torch.Generator().manual_seed(seed)
    needs = [-(-(old + new) // page) for old, new in rows]
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


def finite(cache: LayerCache) -> LayerCache:
    """The same pages with 0 for NaN: the torch reference weights what no row holds with 0."""
    return LayerCache(cache.k.nan_to_num(0.0), cache.v.nan_to_num(0.0))
