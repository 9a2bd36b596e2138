"""Keep weights in memory pages of 2 MB.

A decode step reads every weight once. In pages of 4 KiB a core must look up a new address every 64
cache lines, more than it can remember, and its prefetcher stops at each page's end: reading is up
to twice as slow. Linux gives large pages on request, to memory that is whole pages of this size.
Most matrices are smaller, so they are laid side by side in regions.

Elsewhere, and where the system has no such pages free, memory is as always.
"""

from __future__ import annotations

import mmap
import threading

import torch

from engine.rounding import ceil_div

PAGE = 2 << 20
REGION = 16 * PAGE
"""Addresses reserved at once. They take memory only when something is written there."""
SMALLEST = 64 << 10
"""Pieces of fewer bytes aren't worth it."""
ALIGN = 64  # bytes, a cache line
ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # None: not Linux


class LargePages:
    """Give out memory that is never taken back: a region ends with the last tensor in it."""

    def __init__(self) -> None:
        self._region = torch.empty(0, dtype=torch.uint8)  # what is left of the last one
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Allocate a tensor, like `torch.empty`."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if ADVICE is None or size < SMALLEST:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            return self._piece(size).view(dtype).view(shape)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor, in whatever order it lies, to contiguous memory."""
        return self.empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)

    def _piece(self, size: int) -> torch.Tensor:
        room = ceil_div(size, ALIGN) * ALIGN
        if room > REGION // 2:  # a region of its own
            return _region(room)[:size]
        if room > len(self._region):
            self._region = _region(REGION)
        piece, self._region = self._region[:size], self._region[room:]
        return piece


def _region(size: int) -> torch.Tensor:
    """Reserve whole pages."""
    pages = ceil_div(size, PAGE) * PAGE
    memory = mmap.mmap(-1, pages + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE
    assert ADVICE is not None
    memory.madvise(ADVICE, start, pages)
    return whole[start : start + pages]


WEIGHTS = LargePages()
"""Of the process: matrices of all layers lie side by side."""
