"""Tell a hung engine from a busy one, and from one that has nothing to do.

A further server process is watched by the same rules, as one that owes an answer at all times.

The engine owes news while it has requests, and after each order. A step may be long: hundreds of
prompt tokens of a large model on a slow CPU, or a first step that compiles its kernels. So silence
alone is no proof. An engine that is silent and computes nothing for the timeout is hung: it is
stopped, or waits for something that never comes. One that computes gets `PATIENCE` times as long.
"""

from __future__ import annotations

import os
from collections.abc import Callable

PATIENCE = 10
BUSY = 0.05  # cores: less than this is only the thread that sends the record
LONGEST_TICK = 3  # times the tick: more time than that passed because this process was stopped

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Pulse:
    """Watch one engine, by being called every `tick_s` seconds.

    `cpu_s` returns the CPU seconds that the engine has used, None where they can't be read.
    """

    def __init__(self, timeout_s: float, cpu_s: Callable[[], float | None]):
        self.timeout_s = timeout_s
        self.tick_s = tick_seconds(timeout_s)
        self.silent_s = 0.0  # since it owes news
        self._still_s = 0.0  # of these, the seconds without computing
        self._cpu_s = cpu_s
        self._used_s: float | None = None  # at the last tick

    @property
    def looks_hung(self) -> bool:
        """Return whether half of the time is over in which the engine may compute nothing."""
        return self._still_s > self.timeout_s / 2

    def tick(self, elapsed_s: float, heard: bool, owes: bool) -> str:
        """Take note of the time since the last tick; return why the engine is hung, "" if not.

        `heard`: it has sent something since the last tick. `owes`: it owes news now.
        """
        used_before, self._used_s = self._used_s, self._cpu_s() if owes else None
        if heard or not owes:
            self.silent_s = self._still_s = 0.0
            return ""
        # Time in which this process itself was stopped says nothing about the engine.
        elapsed_s = min(elapsed_s, LONGEST_TICK * self.tick_s)
        self.silent_s += elapsed_s
        known = used_before is not None and self._used_s is not None
        if known and self._used_s - used_before < BUSY * elapsed_s:  # type: ignore[operator]
            self._still_s += elapsed_s
        if self._still_s >= self.timeout_s:
            return f"it has computed nothing and sent nothing for {self._still_s:.0f} s"
        if self.silent_s >= PATIENCE * self.timeout_s:
            return f"its step has taken {self.silent_s:.0f} s already"
        return ""


def tick_seconds(timeout_s: float) -> float:
    """Return the time between two ticks of a `Pulse` with this timeout."""
    return min(1.0, timeout_s / 10)


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU seconds of a process and of its children that ended; None without /proc."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            # The second field is the command's name, which may contain spaces and brackets.
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15])) / _TICKS_A_SECOND
