"""Measure the products of each variant of the CPU's kernels that this machine can run.

`python -m benchmarks.variants`: what the first start measures to choose a variant, several times,
in seconds of one thread's processor time, so that busy neighbours count little. `share`: the time
of reading as many bytes by torch, from the same memory, divided by the product's. Writes
variants.json and variants.md into the machine's folder of benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import torch

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import RESULTS, keep_results, machine_folder
from engine.kernels.cpu import choice
from engine.kernels.cpu.build import VARIANTS, variants_here
from engine.trace.command import run_command

READS = 30


def measure(times: int) -> dict[str, Any]:
    """Return the least microseconds of each variant's products, and of reading the weights."""
    candidates = [name for name in variants_here() if name != "portable"]
    runs = [choice.measure(candidates) for _ in range(times)]
    least = {name: [min(each) for each in zip(*(run[name] for run in runs))] for name in candidates}
    return {
        "machine": {"cpu": cpu_name()},
        "load": os.getloadavg()[0],
        "chosen": choice.best_of(least),
        "rows": choice.ROWS,
        "us": least,
        "read_us": _read(),
        "runs": runs,
    }


def _read() -> float:
    """Return the least microseconds in which torch reads the weights of one product."""
    torch.set_num_threads(1)
    size = choice.OUTPUTS * choice.INPUTS * 2 // 8
    weights = torch.ones(choice.SETS, size, dtype=torch.float64)
    taken = []
    for turn in range(READS * choice.SETS):
        started = time.thread_time()
        weights[turn % choice.SETS].sum()
        taken.append((time.thread_time() - started) * 1e6)
    return round(min(taken), 1)


def table(results: dict[str, Any], measured: set[str]) -> str:
    """Write the page. measured: variants with a table on some machine."""
    rows = " | ".join(f"{count} rows" if count > 1 else "1 row" for count in results["rows"])
    lines = [
        f"`python -m benchmarks.variants`: {choice.OUTPUTS} × {choice.INPUTS} in bf16, µs of one"
        f" thread's processor time, the least of {len(results['runs'])} measurements in turn;"
        f" {choice.SETS} such weights take turns, which a large third cache holds. Load average"
        f" {results['load']:.0f}. torch reads as many bytes in {results['read_us']:.0f} µs.",
        "",
        f"| variant | {rows} | share of reading, 1 row |",
        "|---|---|---|---|---|",
    ]
    for name, times in results["us"].items():
        mark = "**" if name == results["chosen"] else ""
        cells = " | ".join(f"{us:.0f}" for us in times)
        share = results["read_us"] / times[0]
        lines.append(f"| {mark}{name}{mark} | {cells} | {share:.0%} |")
    never = [name for name in VARIANTS if name not in measured]
    lines += ["", f"**{results['chosen']}** is chosen. On no machine yet: {', '.join(never)}."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variants", description=__doc__)
    parser.add_argument("--times", type=int, default=3, help="measurements, of which the least")
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    results = measure(options.times)
    measured = set(results["us"])
    for path in RESULTS.glob("*/variants.json"):
        measured |= set(json.loads(path.read_text())["us"])
    page = table(results, measured)
    if options.print:
        print(page)
    else:
        keep_results(machine_folder(), "variants", results, page)
    return 0


if __name__ == "__main__":
    run_command(main)
