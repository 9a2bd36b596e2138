"""Run the engine and transformers on the same work in turn, and make the tables of their speeds."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.machine import cpu_name
from benchmarks.run_engine import Engine
from benchmarks.run_transformers import Transformers
from benchmarks.shapes import shape, weights_for
from benchmarks.workloads import Run, Workload, workloads
from engine.core.garbage_collection import quiet_collector

STATIC_BATCH = 16
ENGINE, ONE_BY_ONE, STATIC = "Glasshouse", "transformers, one by one", "transformers, static 16"


def machine() -> dict:
    """Describe the machine that the figures were measured on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "date": time.strftime("%Y-%m-%d"),
    }


def systems(engine: Engine, peer: Transformers, work: Workload) -> dict[str, Callable[[], Run]]:
    """Return the systems that run a workload.

    One by one and static batches are the same for a single request.
    """
    runs: dict[str, Callable[[], Run]] = {ENGINE: lambda: engine.run(work)}
    if work.name in ("W1", "W2", "W4"):  # one by one, 64 requests take minutes and add nothing
        runs[ONE_BY_ONE] = lambda: peer.one_by_one(work)
    if work.name in ("W2", "W3"):
        runs[STATIC] = lambda: peer.static(work, STATIC_BATCH)
    return runs


def measure(name: str, dtype: str, repeats: int) -> list[dict]:
    """Return every run of every system on one shape in one dtype."""
    rows = []
    works = workloads(shape(name).vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        model = weights_for(name, Path(folder), getattr(torch, dtype))
        engine = Engine(model, dtype)
        peer = Transformers(model, getattr(torch, dtype))
        for work in (works["W1"], works["W4"]):  # warm-up
            engine.run(work)
            peer.one_by_one(work)
        for work in works.values():
            for repeat in range(repeats):
                for system, run in systems(engine, peer, work).items():
                    if repeat and system != ENGINE and work.name in ("W2", "W3"):
                        continue  # tens of seconds long: its own noise averages out
                    with quiet_collector():  # for all systems, as in the engine's loop
                        result = run()
                    rows.append(
                        {
                            "shape": name,
                            "dtype": dtype,
                            "workload": work.name,
                            "system": system,
                            "total_s": result.total_s,
                            "first_token_s": result.first_token_s,
                            "ends_s": result.ends_s,
                            "output_tokens": work.num_output,
                            "prompt_tokens": sum(len(job.prompt) for job in work.jobs),
                            "steps": result.num_steps,
                        }
                    )
                    print(
                        f"  {name} {dtype} {work.name} {system}: {result.total_s:.2f} s", flush=True
                    )
        engine.close()
        del engine, peer
        gc.collect()
    return rows


def speed(row: dict) -> float:
    """Return the figure that a workload is judged by.

    Decode tokens/s (W1), prompt tokens/s (W4), output tokens/s (W2, W3).
    """
    if row["workload"] == "W1":
        return (row["output_tokens"] - 1) / (row["total_s"] - row["first_token_s"])
    if row["workload"] == "W4":
        return row["prompt_tokens"] / row["total_s"]
    return row["output_tokens"] / row["total_s"]


def summary(rows: list[dict]) -> list[dict]:
    """Return medians by shape, dtype, workload and system, with the engine's ratio to each peer."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        key = (row["shape"], row["dtype"], row["workload"], row["system"])
        groups.setdefault(key, []).append(row)
    medians = {key: statistics.median(map(speed, runs)) for key, runs in groups.items()}
    lines = []
    for key, runs in groups.items():
        shape_name, dtype, workload, system = key
        ours = medians[shape_name, dtype, workload, ENGINE]
        speeds = [speed(run) for run in runs]
        ends = sorted(end for run in runs for end in run["ends_s"])
        lines.append(
            {
                "shape": shape_name,
                "dtype": dtype,
                "workload": workload,
                "system": system,
                "tokens_per_s": round(medians[key], 1),
                "spread": [round(min(speeds), 1), round(max(speeds), 1)],
                "ttft_ms": round(1e3 * statistics.median(r["first_token_s"] for r in runs), 1),
                "p50_s": round(ends[len(ends) // 2], 2),
                "p99_s": round(ends[min(len(ends) - 1, int(0.99 * len(ends)))], 2),
                "engine_is": round(ours / medians[key], 2),
                "runs": len(runs),
            }
        )
    return lines


def markdown(lines: list[dict], where: dict) -> str:
    """Write the tables of docs/performance/."""
    out = [
        f"Measured on {where['cpu']}, {where['threads']} threads, torch {where['torch']},"
        f" transformers {where['transformers']}, {where['date']}. W1: decode tokens/s of one"
        " request; W2, W3: output tokens/s of 16 and 64 requests at once; W4: prompt tokens/s of"
        " 1,024 tokens.",
        "",
        "| shape | dtype | workload | system | tokens/s (min–max) | first token ms | p50 / p99 s |"
        " engine is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        ratio = "" if line["system"] == ENGINE else f"{line['engine_is']:.2f}×"
        low, high = line["spread"]
        out.append(
            f"| {line['shape']} | {line['dtype']} | {line['workload']} | {line['system']}"
            f" | {line['tokens_per_s']:,.1f} ({low:,.0f}–{high:,.0f}) | {line['ttft_ms']:.1f}"
            f" | {line['p50_s']:.2f} / {line['p99_s']:.2f} | {ratio} |"
        )
    return "\n".join(out) + "\n"
