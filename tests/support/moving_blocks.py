"""Random copies and swaps of a `KVCache`, against pages moved one by one."""

from __future__ import annotations

import random

import torch

from engine.worker.memory.kv_cache import KVCache


def move_at_random(cache: KVCache, times: int) -> None:
    """Copies, some of them chains, and swaps both ways; after each, every page is as it should."""
    chance = random.Random(0)
    layers = [pages for layer in cache.layers for pages in (layer.k, layer.v)]
    for pages in layers:
        pages.copy_(torch.randn(pages.shape))
    device = [[page.clone() for page in pages] for pages in layers]
    host = [[None] * cache.num_host_blocks for _ in layers]
    blocks, host_blocks = range(cache.num_blocks), range(cache.num_host_blocks)
    filled: list[int] = []
    for _ in range(times):
        kind = chance.choice(["copy", "out", "in"])
        if kind == "copy":
            targets = chance.sample(blocks, chance.randint(0, 6))
            free = [block for block in blocks if block not in targets]
            sources = free if chance.random() < 0.5 else blocks
            pairs = [(chance.choice(sources), target) for target in targets]
            cache.copy(pairs)
            for pages in device:
                moved = [(target, pages[source]) for source, target in pairs]
                for target, page in moved:
                    pages[target] = page
        elif kind == "out":
            targets = chance.sample(host_blocks, chance.randint(0, 4))
            pairs = [(chance.choice(blocks), target) for target in targets]
            cache.swap_out(pairs)
            filled = sorted({*filled, *targets})
            for pages, other in zip(device, host):
                for source, target in pairs:
                    other[target] = pages[source]
        elif filled:
            targets = chance.sample(blocks, chance.randint(0, 5))
            pairs = [(chance.choice(filled), target) for target in targets]
            cache.swap_in(pairs)
            for pages, other in zip(device, host):
                for source, target in pairs:
                    pages[target] = other[source]
        cache.settle()
        for pages, expected in zip(layers, device):
            assert torch.equal(pages.float(), torch.stack(expected).float())
