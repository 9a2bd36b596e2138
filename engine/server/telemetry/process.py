"""Measure what the server's own processes use, from /proc, under Prometheus clients' names."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Callable, Sequence
from typing import NamedTuple

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

    def text(self, others: Sequence[int] = ()) -> bytes:
        """Write the series. What `others` use, the server's further processes, is added."""
        try:
            used = [_used("self")]
            boot_s = _boot_time_s()
        except OSError:
            return b""
        for pid in others:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                used.append(_used(str(pid)))
        self._cpu.set(sum(one.cpu_s for one in used))
        self._set["resident_memory_bytes"](sum(one.resident for one in used))
        self._set["virtual_memory_bytes"](sum(one.virtual for one in used))
        self._set["start_time_seconds"](boot_s + used[0].started_s)
        self._set["open_fds"](sum(one.open_fds for one in used))
        self._set["max_fds"](resource.getrlimit(resource.RLIMIT_NOFILE)[0] * len(used))
        return self._series.text()


class _Used(NamedTuple):
    """Hold what one process uses."""

    cpu_s: float
    started_s: float  # after the machine
    virtual: int
    resident: int
    open_fds: int


def _used(pid: str) -> _Used:
    with open(f"/proc/{pid}/stat") as file:
        # The second field is the command's name, which may contain spaces and brackets.
        fields = file.read().rpartition(")")[2].split()
    open_fds = len(os.listdir(f"/proc/{pid}/fd"))
    if pid == "self":
        open_fds -= 1  # the one of that listing
    user, system, started, virtual, resident = (int(fields[i]) for i in (11, 12, 19, 20, 21))
    return _Used((user + system) / TICKS, started / TICKS, virtual, resident * PAGE, open_fds)


def _boot_time_s() -> float:
    with open("/proc/stat") as file:
        return next(float(line.split()[1]) for line in file if line.startswith("btime "))
