"""Measure what HTTP leaves of an engine's speed: the same requests in process and over HTTP.

    python -m benchmarks.transport [--shapes pocket smollm2-135m] [--workloads W1 W2 W3]

Both take turns. The server, its tokenizer, the engine and the client share this machine's cores, so
what HTTP costs is seen at its worst. Writes `transport.json` (every repeat) and `transport.md` into
the machine's folder of `results/`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.peers import servers
from benchmarks.peers.install import Peers
from benchmarks.peers.results import row, speed
from benchmarks.peers.tokenizer import save_stand_in
from benchmarks.run_engine import Engine
from benchmarks.shape_names import SHAPES
from benchmarks.shapes import shape, weights_for
from benchmarks.workloads import workloads
from engine.trace.command import run_command
from engine.worker.host import physical_cores

WAYS = ("in process", "HTTP")
DTYPE = "bfloat16"


def by_transport(
    model: str, dtype: str, vocab_size: int, names: Sequence[str], repeats: int
) -> dict[str, list[float]]:
    """Return tokens/s of workloads in process, and through our server; the first round is left
    out."""
    works = workloads(vocab_size)
    seen: dict[str, list[float]] = {f"{name} {way}": [] for name in names for way in WAYS}
    with (
        closing(Engine(model, dtype)) as engine,
        closing(servers.glasshouse(model, dtype, physical_cores(), Peers())) as server,
    ):
        runners = dict(zip(WAYS, (engine.run, server.run)))
        for turn in range(repeats + 1):
            for name in names:
                for way, run in runners.items():
                    found = speed(row(run(works[name]), works[name]))
                    if turn:
                        seen[f"{name} {way}"].append(found)
    return seen


def measure(names: Sequence[str], shapes: Sequence[str], repeats: int) -> dict:
    """Return tokens/s by shape, workload and way, with the machine."""
    result: dict = {
        "cpu": cpu_name(),
        "threads": physical_cores(),
        "torch": torch.__version__,
        "dtype": DTYPE,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "tokens_per_s": {},
    }
    for name in shapes:
        about = shape(name)
        with tempfile.TemporaryDirectory() as folder:
            model = weights_for(name, Path(folder), getattr(torch, DTYPE))
            save_stand_in(Path(model), about.vocab_size, about.eos_token_id)  # our server wants one
            result["tokens_per_s"][name] = by_transport(
                model, DTYPE, about.vocab_size, names, repeats
            )
    return result


def table(speeds: dict[str, list[float]]) -> list[str]:
    """Return a table, a line for each workload: tokens/s in process, over HTTP, and kept."""
    lines = ["| workload | tokens/s in process | over HTTP | keeps |", "|---|---|---|---|"]
    for name in dict.fromkeys(case.split()[0] for case in speeds):
        inside, outside = (speeds[f"{name} {way}"] for way in WAYS)
        kept = statistics.median(outside) / statistics.median(inside)
        lines.append(f"| {name} | {shown(inside)} | {shown(outside)} | {100 * kept:.0f} % |")
    return lines


def shown(values: list[float]) -> str:
    """Write the median, and the least and the most."""
    middle = statistics.median(values)
    digits = 0 if middle >= 100 else 2
    low, high = min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def markdown(result: dict) -> str:
    """Write the tables: medians, and least to most of the repeats."""
    out = [
        f"Measured on {result['cpu']}, {result['threads']} threads, {result['dtype']}, torch"
        f" {result['torch']}, {result['date']}: the same requests in this process and over HTTP, in"
        " turn; the server, its tokenizer and the client share the cores. In brackets: the least"
        " and the most of the repeats. Made by `python -m benchmarks.transport`.",
    ]
    for name, speeds in result["tokens_per_s"].items():
        out += ["", f"{name}:", "", *table(speeds)]
    return "\n".join(out) + "\n"


def main() -> None:
    """Measure, write the machine's files, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = ["pocket", "smollm2-135m"]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=default)
    parser.add_argument("--workloads", nargs="+", choices=list(workloads(100)), default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=machine_folder())
    given = parser.parse_args()
    names = given.workloads or [name for name in workloads(100) if name != "W4"]
    result = measure(names, given.shapes, given.repeats)
    keep_results(given.out, "transport", result, markdown(result))


if __name__ == "__main__":
    run_command(main)
