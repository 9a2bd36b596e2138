"""Measure what this machine can do at best, in under 2 s: memory bandwidth and matrix rate.

Profiles, the lab and the benchmarks state results as shares of these, because absolute figures
differ from machine to machine. Each figure is the best of several tries: a limit is what the
machine reached when nothing disturbed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from engine.kernels.timing import best_seconds

if TYPE_CHECKING:
    from engine.kernels.cost import Cost

BUFFER_BYTES = 512 << 20
"""Read once from end to end: more than most caches hold, so that it comes from memory."""
CUDA_BUFFER_BYTES = 2 << 30  # a GPU reads the other buffer in a tenth of a millisecond
MATRIX = 1024  # rows, columns and depth of the product that the rate is measured on
CUDA_MATRIX = 8192
CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU_DTYPES = (torch.float32, torch.bfloat16)
TRIES = 5


@dataclass(frozen=True)
class MachineLimits:
    """Hold the limits measured on a device; on a CPU with the threads that torch uses now."""

    threads: int
    read_gb_s: float  # memory, read only
    copy_gb_s: float  # memory, bytes read + bytes written
    gemm_gflop_s: dict[str, float]  # dtype → rate of a large product in it
    device: str = "cpu"

    def least_us(self, cost: Cost) -> float:
        """Return the shortest time that memory and arithmetic allow, whichever takes longer.

        Only memory counts for dtypes whose rate wasn't measured.
        """
        memory = cost.num_bytes / self.read_gb_s / 1e3
        rate = self.gemm_gflop_s.get(cost.flops_type)
        return memory if rate is None else max(memory, cost.flops / rate / 1e3)


@lru_cache(maxsize=2)
def machine_limits(device: str = "cpu") -> MachineLimits:
    """Measure this machine, once per process. device: "cpu" or "cuda"."""
    cuda = device == "cuda"
    source = _buffer(device)
    target = torch.empty_like(source[: len(source) // 4])
    copy = best_seconds(lambda: target.copy_(source[: len(target)]), TRIES, cuda)
    return MachineLimits(
        threads=torch.get_num_threads(),
        read_gb_s=_read_gb_s(source),
        copy_gb_s=2 * target.nbytes / copy / 1e9,
        gemm_gflop_s={
            str(dtype).removeprefix("torch."): _gemm_rate(dtype, device)
            for dtype in (CUDA_DTYPES if cuda else CPU_DTYPES)
        },
        device=device,
    )


def memory_probe(device: str = "cpu") -> Callable[[], float]:
    """Return a function that measures how fast memory is read now, in GB/s, each time anew.

    It keeps its buffer. Where others use the memory too, a limit holds only for its moment.
    """
    source = _buffer(device)
    return lambda: _read_gb_s(source)


def _buffer(device: str) -> torch.Tensor:
    num_bytes = CUDA_BUFFER_BYTES if device == "cuda" else BUFFER_BYTES
    return torch.ones(num_bytes // 8, dtype=torch.float64, device=device)


def _read_gb_s(source: torch.Tensor) -> float:
    return source.nbytes / best_seconds(lambda: source.sum(), TRIES, source.is_cuda) / 1e9


def _gemm_rate(dtype: torch.dtype, device: str) -> float:
    """Measure the GFLOP/s of a square product."""
    side = CUDA_MATRIX if device == "cuda" else MATRIX
    a = torch.randn(side, side, device=device).to(dtype)
    linear = torch.nn.functional.linear
    seconds = best_seconds(lambda: linear(a, a), TRIES, device == "cuda")
    return 2 * side**3 / seconds / 1e9
