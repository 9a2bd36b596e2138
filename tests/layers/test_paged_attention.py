"""Paged attention against the formula written out token by token, in float64."""

from __future__ import annotations

import math
import random

import pytest
import torch

from engine.kernels.batch import AttentionBatch, LayerCache
from engine.layers.attention import Attention

HEAD_DIM, BLOCK, BLOCKS = 8, 4, 40

# (tokens in the cache before, tokens of this step) of each row; decode rows first
STEPS = {
    "decode": [(0, 1), (3, 1), (4, 1), (30, 1)],
    "prefill": [(0, 2), (0, 13), (0, 8)],
    "chunks": [(5, 3), (8, 9), (1, 2)],
    "mixed": [(17, 1), (7, 1), (0, 6), (12, 5), (3, 20)],
}
KINDS = {
    "plain": {},
    "window": {"sliding_window": 6},
    "window of one": {"sliding_window": 1},
    "soft cap": {"soft_cap": 1.5},
    "sinks": {"sinks": True},
    "all": {"sliding_window": 6, "soft_cap": 1.5, "sinks": True},
}


def by_formula(q, keys, values, position, spec) -> torch.Tensor:
    """One query token, q: [heads, D]; keys, values: [places, kv_heads, D]. → [heads, D]."""
    group = spec.num_heads // spec.num_kv_heads
    first = 0 if spec.sliding_window is None else max(0, position - spec.sliding_window + 1)
    out = []
    for head in range(spec.num_heads):
        scores = []
        for place in range(first, position + 1):
            score = float(q[head].double() @ keys[place, head // group].double()) * spec.scale
            if spec.soft_cap is not None:
                score = spec.soft_cap * math.tanh(score / spec.soft_cap)
            scores.append(score)
        weights = [math.exp(score) for score in scores]
        total = sum(weights) + (0 if spec.sinks is None else math.exp(float(spec.sinks[head])))
        mixed = sum(
            weight / total * values[first + i, head // group].double()
            for i, weight in enumerate(weights)
        )
        out.append(mixed)
    return torch.stack(out)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
def test_equals_the_formula(step, kind, heads):
    torch.manual_seed(0)
    num_heads, num_kv_heads = heads
    options = dict(KINDS[kind])
    if "sinks" in options:
        options["sinks"] = torch.randn(num_heads)
    attention = Attention(num_heads, num_kv_heads, HEAD_DIM, 0.7, 0, **options)
    rows = STEPS[step]
    shape = (BLOCKS, BLOCK, num_kv_heads, HEAD_DIM)
    # what no row has written may be what is left of a row that failed
    cache = LayerCache(*(torch.full(shape, float("nan")) for _ in range(2)))

    free = list(range(1, BLOCKS))  # 0 is what tables are padded with
    random.Random(1).shuffle(free)
    tables = [[free.pop() for _ in range(-(-(old + new) // BLOCK))] for old, new in rows]
    width = max(map(len, tables)) + 1
    histories, slots, positions, new_k, new_v = [], [], [], [], []
    for (old, new), table in zip(rows, tables):
        keys, values = torch.randn(2, old + new, num_kv_heads, HEAD_DIM)
        where = [table[p // BLOCK] * BLOCK + p % BLOCK for p in range(old + new)]
        cache.k.flatten(0, 1)[where[:old]] = keys[:old]
        cache.v.flatten(0, 1)[where[:old]] = values[:old]
        histories.append((keys, values))
        slots += where[old:]
        positions += range(old, old + new)
        new_k.append(keys[old:])
        new_v.append(values[old:])
    lengths, contexts = [new for _, new in rows], [old + new for old, new in rows]
    batch = AttentionBatch(
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        block_tables=torch.tensor(
            [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
        ),
        query_start=torch.tensor([0, *lengths]).cumsum(0).int(),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        num_decode_rows=sum(length == 1 for length in lengths),
        block_size=BLOCK,
        query_lens=lengths,
        context_lens_list=contexts,
        max_context_len=max(contexts),
    )
    q = torch.randn(sum(lengths), num_heads, HEAD_DIM)
    found = attention(q, torch.cat(new_k), torch.cat(new_v), cache, batch)

    token = 0
    for (old, new), (keys, values) in zip(rows, histories):
        for position in range(old, old + new):
            expected = by_formula(q[token], keys, values, position, attention.spec)
            torch.testing.assert_close(found[token].double(), expected, rtol=0, atol=2e-5)
            token += 1
    again = attention(q, torch.cat(new_k), torch.cat(new_v), cache, batch)  # scratch is reused
    assert torch.equal(again, found)


def test_result_has_the_dtype_of_values():
    """q and k come in fp32 from the rotary embedding of a bf16 model; the cache may be either."""
    attention = Attention(2, 1, HEAD_DIM, 1.0, 0)
    for dtype in (torch.float32, torch.bfloat16):
        cache = LayerCache(*torch.zeros(2, BLOCKS, BLOCK, 1, HEAD_DIM, dtype=dtype))
        batch = AttentionBatch(
            positions=torch.tensor([0]),
            slot_mapping=torch.tensor([2 * BLOCK]),
            block_tables=torch.tensor([[2]], dtype=torch.int32),
            query_start=torch.tensor([0, 1], dtype=torch.int32),
            context_lens=torch.tensor([1], dtype=torch.int32),
            num_decode_rows=1,
            block_size=BLOCK,
            query_lens=[1],
            context_lens_list=[1],
            max_context_len=1,
        )
        k, v = torch.randn(1, 1, HEAD_DIM), torch.randn(1, 1, HEAD_DIM).bfloat16()
        out = attention(torch.randn(1, 2, HEAD_DIM), k, v, cache, batch)
        assert out.dtype == torch.bfloat16
        assert torch.equal(out[0, 1], v[0, 0])  # one token sees itself alone
        assert torch.equal(cache.k[2, 0], k[0].to(dtype))
