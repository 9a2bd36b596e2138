"""Measure what the server's own process uses, from /proc, under Prometheus clients' names."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from engine.server.telemetry.series import SeriesSet

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessSeries:
    """Read /proc at each `text()`; the text is empty where there is no /proc."""

    def __init__(self) -> None:
        self._series = SeriesSet({})
        self._cpu = self._series.counter("process_cpu_seconds", "User and system CPU time.")
        gauges = {
            "resident_memory_bytes": "Memory in RAM.",
            "virtual_memory_bytes": "Addresses in use.",
            "start_time_seconds": "When it began, in seconds since 1970.",
            "open_fds": "Open files and sockets.",
            "max_fds": "How many may be open.",
        }
        self._set: dict[str, Callable[[float], None]] = {
            name: self._series.gauge(f"process_{name}", text).set for name, text in gauges.items()
        }

    def text(self) -> bytes:
        try:
            with open("/proc/self/stat") as file:
                # The second field is the command's name, which may contain spaces and brackets.
                fields = file.read().rpartition(")")[2].split()
            open_fds = len(os.listdir("/proc/self/fd")) - 1  # minus the one of that listing
            boot_s = _boot_time_s()
        except OSError:
            return b""
        user, system, started, virtual, resident = (int(fields[i]) for i in (11, 12, 19, 20, 21))
        self._cpu.set((user + system) / TICKS)
        self._set["resident_memory_bytes"](resident * PAGE)
        self._set["virtual_memory_bytes"](virtual)
        self._set["start_time_seconds"](boot_s + started / TICKS)
        self._set["open_fds"](open_fds)
        self._set["max_fds"](resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        return self._series.text()


def _boot_time_s() -> float:
    with open("/proc/stat") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("btime "))
