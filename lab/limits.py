"""Measure what this machine can do at best, on the device where the engine computes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import busy_cores
from engine.kernels.machine_limits import machine_limits
from engine.worker import host

TRIES = 5
LOOK_S = 0.5  # how long to look at what other programs do
BUSY = 0.3  # cores
CUDA_BYTES = 1 << 30
CUDA_MATRIX = 8192


@dataclass(frozen=True)
class Limits:
    """Hold the measured limits: memory that is only read, and a large product in one dtype."""

    read_gb_s: float
    gemm_gflop_s: float

    def least_s(self, num_bytes: float, flops: float) -> float:
        """Return the shortest time that memory and arithmetic allow, whichever takes longer."""
        return max(num_bytes / self.read_gb_s, flops / self.gemm_gflop_s) / 1e9


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure the limits: some seconds on a CPU, less on a GPU."""
    if device.type == "cpu":
        known = machine_limits()
        name = str(dtype).removeprefix("torch.")
        return Limits(known.read_gb_s, known.gemm_gflop_s[name])
    source = torch.ones(CUDA_BYTES // 4, dtype=torch.float32, device=device)
    read = best_seconds(lambda: source.sum(), device)
    a = torch.randn(CUDA_MATRIX, CUDA_MATRIX, device=device).to(dtype)
    product = best_seconds(lambda: torch.nn.functional.linear(a, a), device)
    return Limits(CUDA_BYTES / read / 1e9, 2 * CUDA_MATRIX**3 / product / 1e9)


def best_seconds(call: Callable[[], object], device: torch.device, tries: int = TRIES) -> float:
    """Return the shortest of several runs, after one that is not counted.

    Each run ends when the device has finished.
    """
    _timed(call, device)
    return min(_timed(call, device) for _ in range(tries))


def _timed(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def threads(busy: float) -> int:
    """Return the number of threads for the model on a CPU: one a core that others leave free.

    busy: how many cores other programs use. Threads wait for each other, so a thread that must
    share its core makes all of them slower than fewer would be.
    """
    free = (os.cpu_count() or 1) - busy
    return max(1, min(host.physical_cores(), int(free + 0.5)))


def cores_of_others() -> float:
    """Measure how many cores' time other programs use, while this one sleeps.

    Where the system counts no ticks, return its average of the last minute, which includes what
    this program did.
    """
    try:
        return busy_cores(LOOK_S)
    except OSError:
        return os.getloadavg()[0]


def describe_machine(device: torch.device, busy: float) -> list[str]:
    """Describe device, memory, driver and libraries, as the system states them.

    busy: how many cores other programs use.
    """
    threads = torch.get_num_threads()
    lines = [f"{_cpu_name()}, {threads} {'thread' if threads == 1 else 'threads'} for the model"]
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        lines.append(
            f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, {gpu.multi_processor_count} SMs,"
            f" compute capability {gpu.major}.{gpu.minor}"
        )
        lines.append(f"driver {_driver()}, CUDA {torch.version.cuda}")
    else:
        lines.append("no CUDA device: the engine computes on the CPU")
    if busy >= BUSY:
        lines.append(
            f"busy: other programs use {busy:.1f} of {os.cpu_count()} cores, so times here are"
            " longer, and scatter more, than the machine's own"
        )
    lines.append(f"Python {platform.python_version()}, torch {torch.__version__}")
    return lines


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = (
        line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
    )
    return next(names, platform.machine())


def _driver() -> str:
    """Return the NVIDIA driver's version, as its kernel module states it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown (no /proc/driver/nvidia here)"
    words = text.split("\n", 1)[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
