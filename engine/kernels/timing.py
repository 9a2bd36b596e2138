"""Time a launch: by the clock on a CPU, by CUDA events on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

HEAD_START_CYCLES = 200_000
"""About 0.1 ms. The GPU waits until the kernel behind the first event is in its queue too.
Otherwise the time between the events would be Python's, which launches most kernels more slowly
than a GPU runs them."""


def timed(run: Callable[..., Any], arguments: tuple[Any, ...], on_cuda: bool) -> tuple[Any, float]:
    """Return (what `run` returns, microseconds). On CUDA the host waits for the kernel to end."""
    if on_cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(HEAD_START_CYCLES)
        begin.record()
        result = run(*arguments)
        end.record()
        end.synchronize()
        return result, begin.elapsed_time(end) * 1e3
    start = time.perf_counter_ns()
    result = run(*arguments)
    return result, (time.perf_counter_ns() - start) / 1e3


def best_seconds(call: Callable[[], object], tries: int, on_cuda: bool) -> float:
    """Return the shortest of several runs, after one that is not counted."""
    call()
    return min(timed(call, (), on_cuda)[1] for _ in range(tries)) / 1e6
