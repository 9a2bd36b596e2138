"""Measure what a server takes of the machine: memory at rest and at work, and its start time.

    python -m benchmarks.footprint [MODEL]   writes benchmarks/results/<machine>/footprint.{json,md}
    python -m benchmarks.footprint --parts   prints what takes the memory, and the time of a start

A server of MODEL (by default the pocket model) is started twice: the first start finds a machine on
which the kernels are compiled but no model was ever loaded, the second one what the first has left.
PSS divides a page among all processes that share it, also those that don't belong to the server;
"alone" counts in full what only such others share. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.footprint_parts import Marks, parts_table
from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from engine.config import POCKET_MODEL, cache_folder
from engine.trace.command import run_command

STREAMS, TOKENS = 16, 200
READY_S = 300
EVERY_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
LISTENS = re.compile(r"Glasshouse listens on (\S+)")
ROLES = {"engine_main": "engine", "multiprocessing.spawn": "further server"}


def processes(pid: int) -> dict[int, str]:
    """List the server's process and its children, by number, with what each does."""
    found = {pid: "server"}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it has ended
                continue
            if parent == pid:
                role = next((role for key, role in ROLES.items() if key in command), "other")
                found[int(entry.name)] = role
    return found


def memory(pid: int) -> dict[str, float]:
    """Return the MB of a process: resident, its share, and memory that no file backs."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = dict(re.findall(r"^(Rss|Pss|Anonymous): +(\d+) kB", text, re.MULTILINE))
    return {name.lower(): int(size) / 1024 for name, size in sizes.items()}


def files_mapped(pid: int) -> dict[tuple[str, str], int]:
    """Return the resident KB of each mapping of a file, at its place in the file."""
    found: dict[tuple[str, str], int] = {}
    key: tuple[str, str] | None = None
    anonymous = rss = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            key = (" ".join(words[5:]), words[2]) if len(words) > 5 and words[4] != "0" else None
        elif key is not None and words[0] == "Rss:":
            rss = int(words[1])
        elif key is not None and words[0] == "Anonymous:":
            anonymous = int(words[1])
            found[key] = max(found.get(key, 0), rss - anonymous)
    return found


def alone(pids: list[int]) -> float:
    """Return the MB that would be in use if no other programs ran.

    It is anonymous memory, and each page of a file once: of each mapping, as much as the process
    with most of it has resident.
    """
    parts: dict[tuple[str, str], int] = {}
    total = 0.0
    for pid in pids:
        total += memory(pid)["anonymous"]
        for key, size in files_mapped(pid).items():
            parts[key] = max(parts.get(key, 0), size)
    return total + sum(parts.values()) / 1024


def sizes(pid: int) -> dict[str, Any]:
    """Return the sizes of all processes of a server, and of all together."""
    found = processes(pid)
    each = {role: memory(number) for number, role in found.items()}
    together = {key: sum(one[key] for one in each.values()) for key in ("rss", "pss", "anonymous")}
    together["alone"] = alone([*found])
    return {"each": each, "together": together}


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of the server, its children, and those of theirs that have ended."""
    total = 0
    for number in processes(pid):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICKS


class Server:
    """Run a server's process, and measure from its start."""

    def __init__(self, model: str, cache: str):
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "koyeb_api_server", "--model", model, "--port", "0"],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XDG_CACHE_HOME": cache, "HOST": "127.0.0.1"},
        )
        self.url = ""
        self._said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._said.append(line)
                if match := LISTENS.search(line):
                    self.url = match[1]

    def wait(self, marks: Marks | None = None) -> dict[str, float]:
        """Wait until it is ready; return the seconds that passed, and those of CPU."""
        note = (lambda mark: None) if marks is None else marks.note
        while self.process.poll() is None and time.monotonic() - self.started < READY_S:
            if self.url:
                note("server: listens")
                state = httpx.get(f"{self.url}/health", timeout=READY_S).json()["status"]
                note("server: all is imported; answers")
                if state == "ready":
                    note("both: ready")
                    passed = time.monotonic() - self.started
                    return {"seconds": passed, "cpu_s": cpu_s(self.process.pid)}
            time.sleep(0.02)
        self.stop()
        raise SystemExit("the server did not become ready:\n" + "".join(self._said[-20:]))

    def work(self) -> None:
        """Answer many requests at once."""
        asyncio.run(streams(self.url))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


async def streams(url: str) -> None:
    """Ask for many answers at once, each as a stream of a fixed number of tokens."""

    async def one(client: httpx.AsyncClient, number: int) -> None:
        body = {
            "prompt": f"What is a token? ({number})",
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "temperature": 0.8,
        }
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for _ in answer.aiter_lines():
                pass

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(*(one(client, number) for number in range(STREAMS)))


def highest(pid: int, work: Callable[[], None]) -> dict[str, Any]:
    """Return the sizes at the moment, during `work`, when the share of all was greatest."""
    done = threading.Event()
    most = sizes(pid)

    def watch() -> None:
        nonlocal most
        while not done.wait(EVERY_S):
            now = sum(memory(number)["pss"] for number in processes(pid))
            if now > most["together"]["pss"]:
                most = sizes(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return most


@contextmanager
def cache_of_kernels() -> Iterator[str]:
    """Make a folder for caches in which only the compiled kernels are."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "glasshouse"
        cache.mkdir()
        for kept in cache_folder().glob("cpu-*"):
            shutil.copy(kept, cache)
        yield folder


def show_parts(model: str) -> None:
    """Start a server twice; print what the second one's start and memory consist of."""
    with cache_of_kernels() as folder:
        for last in (False, True):
            server = Server(model, folder)
            try:
                marks = Marks(server.process.pid, server.started) if last else None
                server.wait(marks)
                if marks is not None:
                    time.sleep(1.0)
                    print(parts_table(processes(server.process.pid), marks))
                    marks.end()
            finally:
                server.stop()


def measure(model: str) -> dict[str, Any]:
    """Start a server twice, and let the second one work."""
    with cache_of_kernels() as folder:
        starts = []
        for last in (False, True):
            server = Server(model, folder)
            try:
                starts.append(server.wait())
                if last:
                    time.sleep(1.0)
                    idle = sizes(server.process.pid)
                    work = highest(server.process.pid, server.work)
                    after = sizes(server.process.pid)
            finally:
                server.stop()
    return {"starts": starts, "idle": idle, "streams": work, "after": after}


def table(results: dict[str, Any]) -> str:
    """Write the page."""
    first, second = results["starts"]
    lines = [
        f"`python -m benchmarks.footprint`, {results['machine']['cpu']}, {results['cores']} cores,"
        f" Python {sys.version.split()[0]}: a server of {results['model']}, no options. Load"
        f" average at the beginning {results['load']:.1f}: what other programs do stretches the"
        " seconds, not those of CPU.",
        "",
        "| start | seconds to ready | seconds of CPU |",
        "|---|---|---|",
        f"| first, with the kernels compiled | {first['seconds']:.1f} | {first['cpu_s']:.1f} |",
        f"| second | {second['seconds']:.1f} | {second['cpu_s']:.1f} |",
        "",
        "| MB | resident | share (PSS) | anonymous | all, if nothing else ran |",
        "|---|---|---|---|---|",
    ]
    moments = {
        "idle": "idle",
        "streams": f"under {STREAMS} streams of {TOKENS} tokens, the highest",
        "after": "idle again",
    }
    for key, name in moments.items():
        found = results[key]
        for role, one in found["each"].items():
            figures = " | ".join(f"{one[key]:.0f}" for key in ("rss", "pss", "anonymous"))
            lines.append(f"| {name}: {role} | {figures} | |")
        one = found["together"]
        lines.append(
            f"| {name}: **together** | {one['rss']:.0f} | **{one['pss']:.0f}** |"
            f" {one['anonymous']:.0f} | {one['alone']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("model", nargs="?", default=POCKET_MODEL)
    parser.add_argument("--print", action="store_true", help="write nothing")
    parser.add_argument("--parts", action="store_true", help="print what takes memory and time")
    options = parser.parse_args()
    if options.parts:
        show_parts(options.model)
        return 0
    results = {
        "machine": {"cpu": cpu_name()},
        "model": "the pocket model" if options.model == POCKET_MODEL else options.model,
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        **measure(options.model),
    }
    page = table(results)
    if options.print:
        print(page)
    else:
        keep_results(machine_folder(), "footprint", results, page)
    return 0


if __name__ == "__main__":
    run_command(main)
