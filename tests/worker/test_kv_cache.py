"""Pages moved by the cache against pages moved one by one."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.batch import LayerKV
from engine.worker.memory.kv_cache import KVCache, bytes_per_block
from tests.support.moving_blocks import move_at_random

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "spec, size, dtype",
    [
        ([LayerKV(2, 8), LayerKV(1, 4)], 4, torch.float32),
        ([LayerKV(3, 64)] * 3, 16, torch.bfloat16),
        ([LayerKV(2, 8)], 16, torch.float8_e5m2),
        ([LayerKV(1, 3)], 1, torch.bfloat16),  # six bytes a page: no whole word
    ],
)
@torch.inference_mode()
def test_random_moves(spec, size, dtype):
    cache = KVCache(spec, 12, 7, size, dtype, CPU)
    layers = [pages for layer in cache.layers for pages in (layer.k, layer.v)]
    assert sum(pages.nbytes for pages in layers) == 12 * bytes_per_block(spec, size, dtype)
    assert all((pages.float() == 0).all() for pages in layers)
    move_at_random(cache, 60)


def test_swapping_is_measured_only_with_a_host_pool():
    spec = [LayerKV(2, 8)]
    assert KVCache(spec, 4, 0, 4, torch.float32, CPU).measure_swap_us() == 0.0
    with torch.inference_mode():
        assert KVCache(spec, 4, 2, 4, torch.float32, CPU).measure_swap_us() > 0.0
