"""Measure what the card can do at best, in the same run: results are shares of these."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

TRIES = 20


@dataclass(frozen=True)
class Limits:
    copy_gb_s: float  # bytes read + bytes written
    matrix_tflop_s: float  # bf16, a large square product


def seconds(call: Callable[[], object], device: torch.device, tries: int = TRIES) -> float:
    """Return the median time of a call on the device, by CUDA events; on a CPU by the clock."""
    call()
    taken = []
    for _ in range(tries):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) / 1e3)
        else:
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return sorted(taken)[tries // 2]


def measure(device: torch.device, num_bytes: int, matrix: int) -> Limits:
    """Measure the limits.

    num_bytes: of the buffer that is copied; more than the caches hold. matrix: its side.
    """
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), device)
    a = torch.randn(matrix, matrix, device=device).bfloat16()
    product = seconds(lambda: a @ a, device)
    return Limits(2 * num_bytes / copy / 1e9, 2 * matrix**3 / product / 1e12)
