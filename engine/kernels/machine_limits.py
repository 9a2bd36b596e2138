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
LARGE_MATRIX = 8192  # the same on a GPU, which a small one doesn't fill
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


@lru_cache(maxsize=2)
def machine_limits(device: str = "cpu") -> MachineLimits:
    """Measure this machine's device ("cpu", "cuda", "cuda:1"), once per process."""
    wait = waiting(device)
    source = torch.ones(BUFFER_BYTES // 8, dtype=torch.float64, device=device)
    target = torch.empty_like(source[: len(source) // 4])
    read = best_seconds(lambda: source.sum(), wait=wait)
    copy = best_seconds(lambda: target.copy_(source[: len(target)]), wait=wait)
    return MachineLimits(
        threads=torch.get_num_threads(),
        read_gb_s=BUFFER_BYTES / read / 1e9,
        copy_gb_s=2 * target.nbytes / copy / 1e9,
        gemm_gflop_s={
            str(dtype).removeprefix("torch."): _gemm_rate(dtype, device)
            for dtype in (torch.float32, torch.bfloat16)
        },
    )


def waiting(device: str) -> Callable[[], object]:
    """What waits until the device has done all that it was given."""
    if device.startswith("cuda"):
        return lambda: torch.cuda.synchronize(device)
    return lambda: None  # a call on the CPU returns when it is done


def _gemm_rate(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a square product."""
    size = MATRIX if device == "cpu" else LARGE_MATRIX
    a = torch.randn(size, size, device=device).to(dtype)
    seconds = best_seconds(lambda: torch.nn.functional.linear(a, a), wait=waiting(device))
    return 2 * size**3 / seconds / 1e9


def best_seconds(
    call: Callable[[], object], tries: int = TRIES, wait: Callable[[], object] = lambda: None
) -> float:
    """The shortest of several runs, after one that is not counted."""
    call()
    times = []
    for _ in range(tries):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times)
