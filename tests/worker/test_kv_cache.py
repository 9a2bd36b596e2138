"""Pages moved by the cache against pages moved one by one."""

from __future__ import annotations

import random

import pytest
import torch

from engine.layers.attention_batch import LayerKV
from engine.worker.kv_cache import KVCache, bytes_per_block

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "spec, size, dtype",
    [
        ([LayerKV(2, 8), LayerKV(1, 4)], 4, torch.float32),
        ([LayerKV(3, 64)] * 3, 16, torch.bfloat16),
        ([LayerKV(1, 3)], 1, torch.bfloat16),  # six bytes a page: no whole word
    ],
)
@torch.inference_mode()
def test_random_moves(spec, size, dtype):
    chance = random.Random(0)
    cache = KVCache(spec, 12, 7, size, dtype, CPU)
    layers = [pages for layer in cache.layers for pages in (layer.k, layer.v)]
    assert sum(pages.nbytes for pages in layers) == 12 * bytes_per_block(spec, size, dtype)
    for pages in layers:
        assert (pages == 0).all()
        pages.copy_(torch.randn(pages.shape))
    device = [[page.clone() for page in pages] for pages in layers]
    host = [[None] * 7 for _ in layers]
    filled: list[int] = []
    for _ in range(60):
        kind = chance.choice(["copy", "out", "in"])
        if kind == "copy":
            targets = chance.sample(range(12), chance.randint(0, 6))
            pairs = [(chance.randrange(12), target) for target in targets]
            cache.copy(pairs)
            for pages in device:
                moved = [(target, pages[source]) for source, target in pairs]
                for target, page in moved:
                    pages[target] = page
        elif kind == "out":
            targets = chance.sample(range(7), chance.randint(0, 4))
            pairs = [(chance.randrange(12), target) for target in targets]
            cache.swap_out(pairs)
            filled = sorted({*filled, *targets})
            for pages, other in zip(device, host):
                for source, target in pairs:
                    other[target] = pages[source]
        elif filled:
            targets = chance.sample(range(12), chance.randint(0, 5))
            pairs = [(chance.choice(filled), target) for target in targets]
            cache.swap_in(pairs)
            for pages, other in zip(device, host):
                for source, target in pairs:
                    pages[target] = other[source]
        for pages, expected in zip(layers, device):
            assert (pages == torch.stack(expected)).all()


def test_swapping_is_measured_only_with_a_host_pool():
    spec = [LayerKV(2, 8)]
    assert KVCache(spec, 4, 0, 4, torch.float32, CPU).measure_swap_us() == 0.0
    with torch.inference_mode():
        assert KVCache(spec, 4, 2, 4, torch.float32, CPU).measure_swap_us() > 0.0
