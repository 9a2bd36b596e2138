"""The KV tensors: pages of keys and values for each layer, and a host pool for swapped-out pages.

Each layer has two tensors of its own. (One stacked tensor for all layers, written through views,
made every write touch the whole in traced code; separate ones cost nothing.)

Copies and swaps come as lists of (from, to) block numbers, moved for all pairs at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from engine.layers.attention_batch import LayerCache, LayerKV

Pairs = Sequence[tuple[int, int]]
SWAP_SAMPLE = 16  # blocks that are moved to measure the speed of swapping


def bytes_per_block(spec: list[LayerKV], block_size: int, dtype: torch.dtype) -> int:
    """Of one block in all layers, keys and values."""
    values = sum(2 * layer.num_kv_heads * layer.head_dim for layer in spec)
    return values * block_size * dtype.itemsize


class KVCache:
    """`layers[i]` is layer i's `LayerCache`: k, v [num_blocks, block_size, kv_heads, head_dim].

    Pages are zeros at first, for what attention gathers beyond a sequence's end is multiplied by
    zero, and zero times whatever lies in fresh memory need not be zero.
    """

    def __init__(
        self,
        spec: list[LayerKV],
        num_blocks: int,
        num_host_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.num_host_blocks = num_host_blocks
        self.device = device
        shapes = [(block_size, layer.num_kv_heads, layer.head_dim) for layer in spec]
        self.layers = [
            LayerCache(*(_pages((num_blocks, *shape), dtype, device) for _ in range(2)))
            for shape in shapes
        ]
        self._host = [
            LayerCache(*(_host_pages((num_host_blocks, *shape), dtype, device) for _ in range(2)))
            for shape in shapes
        ]

    def copy(self, pairs: Pairs) -> None:
        """Copy whole blocks, (source, destination); all are read before any is written."""
        if pairs:
            sources, targets = self._columns(pairs)
            for layer in self.layers:
                for pages in (layer.k, layer.v):
                    pages.index_copy_(0, targets, pages.index_select(0, sources))

    def swap_out(self, pairs: Pairs) -> None:
        """Copy blocks to the host pool, (device block, host block)."""
        if pairs:
            sources, targets = self._columns(pairs)
            targets = targets.cpu()
            for layer, host in zip(self.layers, self._host):
                host.k.index_copy_(0, targets, layer.k.index_select(0, sources).cpu())
                host.v.index_copy_(0, targets, layer.v.index_select(0, sources).cpu())

    def swap_in(self, pairs: Pairs) -> None:
        """Copy blocks back from the host pool, (host block, device block)."""
        if pairs:
            sources, targets = self._columns(pairs)
            sources = sources.cpu()
            for layer, host in zip(self.layers, self._host):
                k, v = host.k.index_select(0, sources), host.v.index_select(0, sources)
                layer.k.index_copy_(0, targets, k.to(self.device))
                layer.v.index_copy_(0, targets, v.to(self.device))

    def measure_swap_us(self) -> float:
        """Microseconds to move one block one way, the median of five tries; 0 without a host pool.
        The blocks that are moved must be free."""
        count = min(SWAP_SAMPLE, self.num_blocks, self.num_host_blocks)
        if count == 0:
            return 0.0
        pairs = [(block, block) for block in range(count)]
        taken = []
        for _ in range(6):
            started = time.perf_counter_ns()
            self.swap_out(pairs)
            self.swap_in(pairs)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            taken.append(time.perf_counter_ns() - started)
        return sorted(taken[1:])[2] / 1e3 / (2 * count)  # the first try pays for fresh memory

    def _columns(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        columns = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
        return columns[0].to(self.device), columns[1].to(self.device)


def _pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros. On a CPU the kernel gives them page by page, as they are first written (calloc)."""
    if device.type == "cpu" and 0 not in shape:
        memory = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
        return torch.from_numpy(memory).view(dtype).view(shape)
    return torch.zeros(shape, dtype=dtype, device=device)


def _host_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Pinned for CUDA, so that its copies go at the bus's full speed."""
    if device.type == "cuda":
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return _pages(shape, dtype, torch.device("cpu"))
