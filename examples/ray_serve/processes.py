"""Look at the processes that Ray started for us, in /proc: what they are, and what they cost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """Name a process, as `ps` does."""

    pid: int
    parent: int
    command: str

    @property
    def kind(self) -> str:
        """Say which part of the application it is; "" for what only manages."""
        if "ServeReplica" in self.command:
            return "door" if ":Door" in self.command else "replica"
        if "ProxyActor" in self.command:
            return "proxy"
        return "server" if "examples.ray_serve.child" in self.command else ""


def descendants(pid: int = 0) -> list[Process]:
    """Return the children of a process, by default this one, and theirs, and so on."""
    found: dict[int, Process] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue  # it has ended
        found[int(folder.name)] = Process(int(folder.name), parent, command)
    own, known = [], {pid or os.getpid()}
    while more := [p for p in found.values() if p.parent in known and p.pid not in known]:
        own += more
        known |= {process.pid for process in more}
    return own


def bind(pid: int, cpu: int) -> None:
    """Keep a process, its children and all their threads on one CPU."""
    for one in [pid, *(process.pid for process in descendants(pid))]:
        for thread in os.listdir(f"/proc/{one}/task"):
            os.sched_setaffinity(int(thread), {cpu})


def cpu_seconds(processes: Iterable[Process]) -> float:
    """Return the processor time that these processes have had, user's and system's."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mb(processes: Iterable[Process]) -> float:
    """Return the memory that these processes take, with their share of what several use (PSS)."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def without_servers(processes: Iterable[Process]) -> list[Process]:
    """Return what is Ray's, parents before their children as `descendants` has them."""
    servers, rest = set(), []
    for process in processes:
        if process.kind == "server" or process.parent in servers:
            servers.add(process.pid)
        else:
            rest.append(process)
    return rest
