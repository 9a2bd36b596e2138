"""Describe the machine that the figures are of, and measure how busy it is."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's name as the kernel states it."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def busy_cores(seconds: float = 2.0) -> float:
    """Return cores' worth of work done by anyone, while we sleep: 0.1 is a tenth of one core."""
    busy, whole = _ticks()
    time.sleep(seconds)
    busy_after, whole_after = _ticks()
    return (busy_after - busy) / max(1, whole_after - whole) * (os.cpu_count() or 1)


def _ticks(stat: Path = Path("/proc/stat")) -> tuple[int, int]:
    """Return (busy, all) ticks of all cores since boot. See proc(5).

    Waiting for a disk is not busy; losing a core to another guest of the host is.
    """
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, stat.read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return busy, busy + idle + iowait
