"""What this machine could do at best: memory bandwidth and matrix rate, measured in under 2 s.

Profiles, the lab and the benchmarks state results as shares of these, because absolute figures
move from machine to machine. Each figure is the best of several tries: a limit is what the machine
reached when nothing disturbed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from engine.kernels.launch import Cost

BUFFER_BYTES = 512 << 20
"""Read once from end to end: more than most caches hold, so that it comes from memory."""
MATRIX = 1024  # rows, columns and depth of the product that the rate is measured on
TRIES = 5


@dataclass(frozen=True)
class MachineLimits:
    """Measured with the threads that torch uses now."""

    threads: int
    read_gb_s: float  # memory, read only
    copy_gb_s: float  # memory, bytes read + bytes written
    gemm_gflop_s: dict[str, float]  # dtype → rate of a large product in it

    def least_us(self, cost: Cost) -> float:
        """The shortest time that the memory or the arithmetic would allow, whichever binds."""
        memory = cost.num_bytes / self.read_gb_s / 1e3
        return max(memory, cost.flops / self.gemm_gflop_s[cost.flops_type] / 1e3)


@lru_cache(maxsize=1)
def machine_limits() -> MachineLimits:
    """Measure this machine, once per process."""
    source = torch.ones(BUFFER_BYTES // 8, dtype=torch.float64)
    target = torch.empty_like(source[: len(source) // 4])
    read = best_seconds(lambda: source.sum())
    copy = best_seconds(lambda: target.copy_(source[: len(target)]))
    return MachineLimits(
        threads=torch.get_num_threads(),
        read_gb_s=BUFFER_BYTES / read / 1e9,
        copy_gb_s=2 * target.nbytes / copy / 1e9,
        gemm_gflop_s={
            str(dtype).removeprefix("torch."): _gemm_rate(dtype)
            for dtype in (torch.float32, torch.bfloat16)
        },
    )


def _gemm_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product."""
    a = torch.randn(MATRIX, MATRIX).to(dtype)
    seconds = best_seconds(lambda: torch.nn.functional.linear(a, a))
    return 2 * MATRIX**3 / seconds / 1e9


def best_seconds(call: Callable[[], object], tries: int = TRIES) -> float:
    """The shortest of several runs, after one that is not counted."""
    call()
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
