"""Compare what a JSON schema costs here and in vLLM, which uses xgrammar.

    python -m benchmarks.peers.structured [--shapes pocket smollm2-135m] [--repeats 5]

Both systems compute the same 16 requests with the same weights, greedy, in turn: without a schema
and with it, each system in a process that sleeps while the other takes its turn. A grammar's state
depends on the text, which is the model's own: the two need not write the same numbers. Writes
`peers_structured.json` and `peers_structured.md` into the machine's folder of `results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

from benchmarks.machine import busy_cores, cpu_name
from benchmarks.machine_folder import machine_folder
from benchmarks.peers.__main__ import REST_S, model_folder
from benchmarks.peers.in_process import InProcess
from benchmarks.peers.install import Peers
from benchmarks.peers.structured_worker import OUTPUT, PROMPT, REQUESTS, WITH, WITHOUT, workloads
from benchmarks.shapes import shape
from engine.trace.command import run_command
from engine.worker.host import physical_cores

SHAPES = ("pocket", "smollm2-135m")
SYSTEMS = ("Glasshouse", "vLLM")


class Held(InProcess):
    """Run one system whose requests may have the schema."""

    module = "benchmarks.peers.structured_worker"


def measure(name: str, repeats: int, threads: int, peers: Peers) -> dict[str, Any]:
    """Measure one shape: tokens a second of each run of each system, by way."""
    model, vocab_size = model_folder(name, "bfloat16"), shape(name).vocab_size
    works = list(workloads(vocab_size).values())
    speeds: dict[str, dict[str, list[float]]] = {}
    systems: list[Held] = []
    try:
        for system in SYSTEMS:
            systems.append(Held(system, str(model), "bfloat16", threads, vocab_size, peers))
            speeds[system] = {WITHOUT: [], WITH: []}
        for repeat in range(repeats + 1):
            for system in systems[:: 1 if repeat % 2 else -1]:
                for work in works[:: 1 if repeat // 2 % 2 else -1]:
                    time.sleep(REST_S)
                    run = system.run(work)
                    if repeat:  # the first warms up
                        speeds[system.name][work.name].append(work.num_output / run.total_s)
        versions = {system.name: system.versions for system in systems}
    finally:
        for system in systems:
            system.close()
    return {"shape": name, "speeds": speeds, "versions": versions, "busy": busy_cores()}


def described(runs: dict[str, list[float]]) -> tuple[float, float, float]:
    """Return medians of one system's runs: tokens/s without and with, and the share that is kept.

    The share is a median over pairs of neighbouring runs.
    """
    both = zip(runs[WITHOUT], runs[WITH], strict=True)
    kept = statistics.median(held / free for free, held in both)
    return statistics.median(runs[WITHOUT]), statistics.median(runs[WITH]), kept


def markdown(lines: list[dict[str, Any]], threads: int) -> str:
    """Write the table of docs/performance/."""
    versions = lines[0]["versions"]
    named = "; ".join(
        f"{system}: {', '.join(f'{name} {version}' for name, version in its.items())}"
        for system, its in versions.items()
    )
    out = [
        f"Measured on {cpu_name()}, {threads} of {os.cpu_count()} cores,"
        f" {time.strftime('%Y-%m-%d')} by `python -m benchmarks.peers.structured` ({named}):"
        f" {REQUESTS} requests at once, {PROMPT} tokens in and {OUTPUT} out, greedy, in bf16, in"
        " turn without a schema and with one, a list of records with texts, numbers and choices."
        " Kept: the median of with / without over pairs.",
        "",
        "| shape | system | tokens/s without | with | kept | with: we over theirs |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        found = {system: described(runs) for system, runs in line["speeds"].items()}
        for system, (free, held, kept) in found.items():
            over = f"{found['Glasshouse'][1] / held:.2f}×" if system != "Glasshouse" else ""
            out.append(
                f"| {line['shape']} | {system} | {free:,.0f} | {held:,.0f} | {kept:.2f} | {over} |"
            )
    busiest = max(line["busy"] for line in lines)
    return "\n".join([*out, "", f"Cores busy with other work afterwards: {busiest:.2f}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    given = parser.parse_args()
    peers = Peers()
    if not peers.has_vllm:
        raise SystemExit("vLLM isn't installed; python -m benchmarks.peers.install vLLM")
    folder = machine_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "peers_structured.json"
    kept = json.loads(path.read_text()) if path.exists() else []
    for name in given.shapes:
        line = measure(name, given.repeats, given.threads, peers)
        print(json.dumps(line), flush=True)
        kept = [line, *(old for old in kept if old["shape"] != name)]
        kept.sort(key=lambda line: SHAPES.index(line["shape"]))
        path.write_text(json.dumps(kept, indent=1) + "\n")
        (folder / "peers_structured.md").write_text(markdown(kept, given.threads))
    print((folder / "peers_structured.md").read_text())


if __name__ == "__main__":
    run_command(main)
