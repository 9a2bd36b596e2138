"""Measure what a streamed token costs the process that speaks HTTP, beside vLLM and llama.cpp.

    python -m benchmarks.peers.api_cost    writes benchmarks/results/<machine>/api_cost.{json,md}

All serve SmolLM2 with its real weights on the same cores, are started together, and take turns with
the same clients. Ours and vLLM compute in a process of its own, so the CPU time of the one that
speaks HTTP is told apart; llama.cpp has one process, whose threads do both, so only the sum is
told. The engine computes on the cores that the server needs, as it would on such a machine:
`benchmarks.token_cost` measures our server alone. Linux only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.peers import servers
from benchmarks.peers.install import Peers
from benchmarks.peers.limits import LLAMA_SLOT_TOKENS
from benchmarks.peers.results import ENGINE
from benchmarks.peers.same_file import DTYPE, MODEL, SHAPE
from benchmarks.peers.servers import Server
from benchmarks.token_cost import Streams, generated
from engine.models.hub import find_model
from engine.trace.command import run_command
from engine.worker.host import physical_cores

WARM_S, MEASURED_S = 1.0, 4.0
REST_S = 1.0  # before each run: streams of the one before it are aborted, threads may still spin
STREAMS = (1, 16)
TOKENS = LLAMA_SLOT_TOKENS - 100  # of a stream, so that none ends


def family(pid: int) -> list[int]:
    """Return a process, its children, and theirs, and so on."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_s(pids: list[int]) -> float:
    """Return the CPU seconds of processes, of all their threads."""
    ns = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            try:
                ns += int((thread / "schedstat").read_text().split()[0])
            except OSError:  # it has ended meanwhile
                continue
    return ns / 1e9


def run(server: Server, num: int) -> dict[str, Any]:
    """Read `num` streams of a server; return tokens/s and microseconds of CPU a token.

    `api_us` is of the process that speaks HTTP, None where it computes too; `all_us` of all.
    """
    pid = server.process.pid
    is_parted = server.name != "llama.cpp"
    streams = Streams(server.port, "completions", num, TOKENS)

    def now() -> tuple[float, float, float, float]:
        # llama.cpp counts a stream's tokens at its end, and sends one an event.
        tokens = generated(server.port) if is_parted else float(streams.events)
        return tokens, cpu_s([pid]), cpu_s(family(pid)), time.monotonic()

    try:
        streams.read(WARM_S)
        before = now()
        streams.read(MEASURED_S)
        tokens, own, of_all, took = (y - x for x, y in zip(before, now()))
    finally:
        streams.close()
    return {
        "system": server.name,
        "streams": num,
        "tokens_per_s": tokens / took,
        "api_us": 1e6 * own / tokens if is_parted else None,
        "all_us": 1e6 * of_all / tokens,
    }


def measure(starters: list[Callable[[], Server]], streams: list[int], repeats: int) -> dict:
    """Start the systems, and measure them in turns; return versions and all runs."""
    with ExitStack() as stack:
        systems = [stack.enter_context(closing(start())) for start in starters]
        runs = []
        for repeat in range(repeats + 1):
            for num in streams:
                for system in systems:
                    time.sleep(REST_S)
                    seen = run(system, num)
                    if repeat:  # the first one compiles, and fills caches
                        runs.append(seen)
        versions = {system.name: system.versions for system in systems}
    return {"versions": versions, "runs": runs}


def markdown(result: dict[str, Any], threads: int, left_out: list[str]) -> str:
    """Return the table: a line for each number of streams and system."""
    versions = [
        f"{name} {version}" for its in result["versions"].values() for name, version in its.items()
    ]
    lines = [
        f"Measured on {cpu_name()}, {time.strftime('%Y-%m-%d')}: {SHAPE} with its own weights in"
        f" {DTYPE}, {threads} threads, completions streamed to clients on the same cores, in turn."
        " µs of CPU a token: of the process that speaks HTTP, and of all its processes, medians;"
        " llama.cpp has one process for both. The same clients, the same prompt."
        f" {', '.join(versions)}. Made by `python -m benchmarks.peers.api_cost`.",
        *(f"Left out: {name} is not installed." for name in left_out),
        "",
        "| streams | system | tokens/s | µs of the HTTP process | least | µs of all |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, str], list[dict]] = {}
    for one in result["runs"]:
        groups.setdefault((one["streams"], one["system"]), []).append(one)
    for (num, system), its in groups.items():
        pace, of_all = (
            statistics.median(one[key] for one in its) for key in ("tokens_per_s", "all_us")
        )
        own = [one["api_us"] for one in its if one["api_us"] is not None]
        told = f"{statistics.median(own):.0f} | {min(own):.0f}" if own else "not apart | "
        lines.append(f"| {num} | {system} | {pace:,.0f} | {told} | {of_all:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, write the machine's files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--streams", type=int, nargs="+", default=list(STREAMS))
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=machine_folder())
    given = parser.parse_args()
    peers, threads = Peers(), given.threads
    folder = find_model(MODEL, None, None)
    starters: dict[str, Callable[[], Server]] = {
        ENGINE: partial(servers.glasshouse, str(folder), DTYPE, threads, peers),
        "vLLM": partial(servers.vllm, str(folder), DTYPE, threads, peers),
        "llama.cpp": lambda: servers.llama_cpp(
            str(servers.converted(SHAPE, folder, DTYPE, peers)), DTYPE, threads, peers
        ),
    }
    there = {ENGINE: True, "vLLM": peers.has_vllm, "llama.cpp": peers.has_llama}
    result = measure(
        [start for name, start in starters.items() if there[name]], given.streams, given.repeats
    )
    table = markdown(result, threads, [name for name in starters if not there[name]])
    keep_results(given.out, "api_cost", result, table)
    return 0


if __name__ == "__main__":
    run_command(main)
