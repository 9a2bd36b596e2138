"""Hold the KV tensors: pages for each layer, and a host pool for swapped-out pages.

Each layer has two tensors of its own. (One stacked tensor for all layers, written through views,
made every write touch the whole in traced code; separate ones cost nothing.)

Copies and swaps come as lists of (from, to) block numbers, moved for all pairs at once. On CUDA
swaps run beside other work (`SwapStream`): call `settle` before pages are used.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from engine.kernels import asynchronous, kernels_for
from engine.kernels.batch import LayerCache, LayerKV

Pairs = Sequence[tuple[int, int]]
SWAP_SAMPLE = 16  # blocks that are moved to measure the speed of swapping


def bytes_per_block(spec: list[LayerKV], block_size: int, dtype: torch.dtype) -> int:
    """Return the bytes of one block in all layers, keys and values."""
    values = sum(2 * layer.num_kv_heads * layer.head_dim for layer in spec)
    return values * block_size * dtype.itemsize


class KVCache:
    """Hold the pages: `layers[i]` is layer i's `LayerCache`.

    k, v: [num_blocks, block_size, kv_heads, head_dim]. Attention multiplies what it gathers beyond
    a sequence's end by zero. 0 × NaN is NaN, so pages start as zeros.
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
        self._pages = [_as_words(pages) for layer in self.layers for pages in (layer.k, layer.v)]
        self._host_pages = [
            _as_words(_host_pages((num_host_blocks, *shape), dtype, device))
            for shape in shapes
            for _ in range(2)
        ]
        self._swaps = SwapStream(device) if asynchronous(device) else None
        self._copy_blocks = kernels_for(device).copy_blocks
        if any(pages.dtype != torch.int64 for pages in self._pages):
            self._copy_blocks = None
        if self._copy_blocks is not None:
            self._addresses = _numbers([pages.data_ptr() for pages in self._pages], device)
            self._host_addresses = _numbers([p.data_ptr() for p in self._host_pages], device)
            self._words = _numbers([pages.shape[1] for pages in self._pages], device)

    def copy(self, pairs: Pairs) -> None:
        """Copy whole blocks, (source, destination); all are read before any is written."""
        self.settle()
        written = {target for _, target in pairs}
        if self._copy_blocks is None or any(source in written for source, _ in pairs):
            self._move(self._pages, self._pages, pairs)
        elif pairs:
            moved = _numbers(pairs, self.device)
            self._copy_blocks(self._addresses, self._addresses, self._words, moved)

    def swap_out(self, pairs: Pairs) -> None:
        """Copy blocks to the host pool, (device block, host block)."""
        self._swap(pairs, out=True)

    def swap_in(self, pairs: Pairs) -> None:
        """Copy blocks back from the host pool, (host block, device block)."""
        self._swap(pairs, out=False)

    def settle(self) -> None:
        """Make later work on the device wait for the swaps. Call before any use of the pages."""
        if self._swaps is not None:
            self._swaps.wait()

    def measure_swap_us(self) -> float:
        """Measure the microseconds to move one block one way; 0 without a host pool.

        It is the median of five tries. The blocks that are moved must be free.
        """
        count = min(SWAP_SAMPLE, self.num_blocks, self.num_host_blocks)
        if count == 0:
            return 0.0
        pairs = [(block, block) for block in range(count)]
        taken = []
        for _ in range(6):
            started = time.perf_counter_ns()
            self.swap_out(pairs)
            self.swap_in(pairs)
            if asynchronous(self.device):
                torch.cuda.synchronize(self.device)
            taken.append(time.perf_counter_ns() - started)
        return sorted(taken[1:])[2] / 1e3 / (2 * count)  # the first try faults its pages in

    def _swap(self, pairs: Pairs, out: bool) -> None:
        if not pairs:
            return

        def swap() -> None:
            if self._copy_blocks is None:
                ways = (self._pages, self._host_pages)
                self._move(*(ways if out else ways[::-1]), pairs)
            else:
                places = (self._addresses, self._host_addresses)
                moved = _numbers(pairs, self.device)
                self._copy_blocks(*(places if out else places[::-1]), self._words, moved)

        if self._swaps is None:
            swap()
        else:
            self._swaps.run(swap)

    @staticmethod
    def _move(sources: list[torch.Tensor], targets: list[torch.Tensor], pairs: Pairs) -> None:
        if not pairs:
            return
        columns = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
        begin = columns[0].to(sources[0].device)
        end = columns[1].to(targets[0].device)
        for source, target in zip(sources, targets):
            target.index_copy_(0, end, source.index_select(0, begin).to(target.device))


class SwapStream:
    """Run swaps beside computing, on a CUDA stream of their own that is waited for at two places.

    A swap begins when all earlier launches have run, because it reads pages that the last step
    wrote and writes pages that it may have read. Nothing that touches pages may be launched before
    `wait`, which holds the computing stream until the swaps have arrived. Meanwhile the host
    prepares the step, and its inputs travel. No call here holds up the host.

    Swaps keep their order among themselves: a host block that was just filled can be read by the
    next.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._arrived: torch.cuda.Event | None = None  # passed when all that runs here has ended

    def run(self, swap: Callable[[], None]) -> None:
        """Launch `swap` here, after everything that the computing stream has been given."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            swap()
        self._arrived = self.stream.record_event()

    def wait(self) -> None:
        """Make later launches on the computing stream wait for the swapped blocks."""
        if self._arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arrived)
            self._arrived = None


def _numbers(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Make an int64 tensor on the device; copying to CUDA doesn't wait for it."""
    numbers = torch.tensor(values, dtype=torch.int64)
    return numbers.pin_memory().to(device, non_blocking=True) if asynchronous(device) else numbers


def _as_words(pages: torch.Tensor) -> torch.Tensor:
    """View the same memory as [blocks, words of 8 bytes] where that fits.

    An element of eight bytes moves as fast as one of two.
    """
    flat = pages.flatten(1)
    return flat.view(torch.int64) if flat.shape[1] * flat.itemsize % 8 == 0 else flat


def _pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate pages of zeros. On a CPU they cost memory page by page, as they are first written.

    So they are mapped here: an allocator that keeps memory (`host.keep_freed_memory`) would
    reuse old memory and write the zeros itself.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.from_numpy(np.frombuffer(memory, np.uint8)).view(dtype).view(shape)


def _host_pages(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Allocate host pages, pinned for an asynchronous device.

    Copies of pinned memory use the bus's full speed.
    """
    if asynchronous(device):
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return _pages(shape, dtype, torch.device("cpu"))
