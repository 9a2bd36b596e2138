"""Drives a model over hand-made pages, as the worker does, for tests of models and kernels.

`PagedModel` keeps a pool of pages per layer, hands out scattered blocks to sequences, and
computes steps of any mixture of rows. `compare_with_transformers` is the test that it is for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from engine.kernels.batch import AttentionBatch, LayerCache


@dataclass
class Sequence:
    """A text under computation: its tokens, its blocks, and the logits so far, by position."""

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


class PagedModel:
    """A model with its cache; every place of it starts as NaN-free garbage, blocks shuffled."""

    def __init__(self, model, num_blocks=64, block_size=4, cache_dtype=torch.float32, seed=0):
        self.model = model
        self.block_size = block_size
        generator = torch.Generator().manual_seed(seed)
        self.caches = []
        for kv in model.kv_spec:
            shape = (num_blocks, block_size, kv.num_kv_heads, kv.head_dim)
            k = torch.randn(shape, generator=generator).to(cache_dtype)
            v = torch.randn(shape, generator=generator).to(cache_dtype)
            self.caches.append(LayerCache(k * 100, v * 100))
        self.free = list(range(num_blocks))
        random.Random(seed).shuffle(self.free)

    @torch.inference_mode()
    def step(self, work: list[tuple[Sequence, int]]) -> None:
        """Compute the next n tokens of each sequence in one batch. Adds to their `logits`."""
        work = sorted(work, key=lambda row: row[1] != 1)  # decode rows first, as the runner does
        batch, ids = self._batch(work)
        hidden = self.model(ids, batch.positions, self.caches, batch)
        logits = self.model.compute_logits(hidden).float()
        for (sequence, _), part in zip(work, logits.split(batch.query_lens), strict=True):
            sequence.logits.append(part)
            sequence.computed += len(part)

    def run(self, sequence: Sequence, pieces: list[int]) -> torch.Tensor:
        """Compute a sequence alone, in the given pieces. Returns its logits [tokens, vocab]."""
        for piece in pieces:
            self.step([(sequence, piece)])
        return torch.cat(sequence.logits)

    def _batch(self, work: list[tuple[Sequence, int]]) -> tuple[AttentionBatch, torch.Tensor]:
        ids, positions, slots, contexts, lengths = [], [], [], [], []
        for sequence, count in work:
            end = sequence.computed + count
            assert count > 0 and end <= len(sequence.tokens)
            while len(sequence.blocks) * self.block_size < end:
                sequence.blocks.append(self.free.pop())
            for position in range(sequence.computed, end):
                block = sequence.blocks[position // self.block_size]
                slots.append(block * self.block_size + position % self.block_size)
            ids += sequence.tokens[sequence.computed : end]
            positions += range(sequence.computed, end)
            contexts.append(end)
            lengths.append(count)
        width = max(len(sequence.blocks) for sequence, _ in work)
        tables = [s.blocks + [0] * (width - len(s.blocks)) for s, _ in work]
        starts = [sum(lengths[:row]) for row in range(len(lengths) + 1)]
        batch = AttentionBatch(
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            block_tables=torch.tensor(tables, dtype=torch.int32),
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32),
            num_decode_rows=sum(length == 1 for length in lengths),
            block_size=self.block_size,
            query_lens=lengths,
            context_lens_list=contexts,
            max_context_len=max(contexts),
        )
        return batch, torch.tensor(ids)


PIECES = ([29], [5, 1, 11, 1, 1, 10], [1] * 29)
"""How one text of 29 tokens is computed: at once, in uneven chunks, token by token."""


def compare_with_transformers(paged: PagedModel, reference, vocab: int, limit=1e-4) -> None:
    """Logits of every position equal transformers', however the text was cut and mixed."""
    generator = random.Random(7)
    texts = [[generator.randrange(3, vocab) for _ in range(29)] for _ in PIECES]
    with torch.inference_mode():
        expected = [reference(torch.tensor([text])).logits[0].float() for text in texts]
    scale = max(float(logits.abs().max()) for logits in expected)
    assert scale > 0.05, "the reference's logits are too small for the comparison to mean anything"

    for pieces, text, logits in zip(PIECES, texts, expected, strict=True):  # each alone
        found = paged.run(Sequence(text), list(pieces))
        torch.testing.assert_close(found, logits, rtol=0, atol=limit)

    mixed = [Sequence(text) for text in texts]  # all three in one batch, step by step
    plans = [[5, 1, 11, 1, 1, 10], [1] * 29, [3, 8, 1, 1, 1, 1, 14]]
    while any(plans):
        paged.step([(s, plan.pop(0)) for s, plan in zip(mixed, plans, strict=True) if plan])
    for sequence, logits in zip(mixed, expected, strict=True):
        torch.testing.assert_close(torch.cat(sequence.logits), logits, rtol=0, atol=limit)
