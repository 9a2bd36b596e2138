"""Measure where the time of a step goes on this CPU: parts, kernels, the machine's limits.

    python -m benchmarks.step_budget [--shapes pocket opt-125m smollm2-135m] [--rows 1 16]

The same steps of 150 to 210 tokens of context, in bf16, are measured twice. The parts are what
`step.finished` says of steps as they always run, with the record at `steps`; the kernels are timed
at level `profile`, where each is launched alone from Python. Then the kernels of a prompt. Writes
`step_budget.json` and `step_budget.md` into the machine's folder of `results/`.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.run_engine import Engine
from benchmarks.shape_names import LARGE_SHAPES, SHAPES
from benchmarks.shapes import shape, weights_for
from engine.core.messages import CoreRequest
from engine.kernels.machine_limits import machine_limits
from engine.sampling_params import SamplingParams
from engine.trace.command import run_command
from engine.trace.events import Event, KernelLaunched, StepFinished

CONTEXT, STEPS, FIRST = 150, 60, 10
PROMPT = 1024
PARTS = ("schedule_us", "prepare_us", "forward_us", "sample_us", "update_us")


def events_of(model: str, level: str, num_rows: int, vocab_size: int) -> list[Event]:
    """Record `num_rows` requests that decode together, from the first on."""
    with closing(Engine(model, "bfloat16", trace=level)) as engine:
        return _record(engine, [CONTEXT] * num_rows, STEPS, vocab_size)


def prompt_events(model: str, vocab_size: int) -> list[Event]:
    """Record the second of two prompts of PROMPT tokens, at level `profile`."""
    with closing(Engine(model, "bfloat16", trace="profile")) as engine:
        _record(engine, [PROMPT], 1, vocab_size)
        return _record(engine, [PROMPT], 1, vocab_size)


def _record(engine: Engine, prompts: list[int], num_output: int, vocab_size: int) -> list[Event]:
    """Return what is recorded while requests with prompts of these lengths are computed."""
    engine.events()
    draw = random.Random(0)
    for i, length in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=num_output, ignore_eos=True, seed=0)
        prompt = [draw.randrange(10, vocab_size) for _ in range(length)]
        engine.core.add_request(
            CoreRequest(request_id=str(i), prompt_token_ids=prompt, params=params)
        )
    with engine.looping():
        while engine.core.has_work:
            engine.core.step()
    return engine.events()


def parts_of(events: list[Event], num_rows: int) -> dict[str, float]:
    """Return median microseconds of each part of the steps in which all rows decode."""
    steps = [e for e in events if isinstance(e, StepFinished) and e.num_decode_tokens == num_rows]
    steps = steps[FIRST:]
    found = {part: statistics.median(getattr(step, part) for step in steps) for part in PARTS}
    found["total_us"] = statistics.median(step.total_us for step in steps)
    return found


def decoding(events: list[Event], num_rows: int) -> set[int]:
    """Return the steps in which that many rows decode."""
    return {
        e.step for e in events if isinstance(e, StepFinished) and e.num_decode_tokens == num_rows
    }


def prefilling(events: list[Event]) -> set[int]:
    """Return the steps that compute prompts."""
    return {
        e.step for e in events if isinstance(e, StepFinished) and e.num_tokens > e.num_decode_tokens
    }


def kernels_of(events: list[Event], steps: set[int]) -> list[dict]:
    """Return each kernel of those steps.

    Launches and microseconds a step, rates, share of the limit.
    """
    groups: dict[str, list[KernelLaunched]] = defaultdict(list)
    for event in events:
        if isinstance(event, KernelLaunched) and event.step in steps:
            groups[event.name].append(event)
    lines = []
    for name, launches in groups.items():
        taken = sum(launch.duration_us for launch in launches)
        least = sum(launch.duration_us * launch.share_of_limit for launch in launches)
        lines.append(
            {
                "kernel": name,
                "launches": len(launches) / len(steps),
                "us": taken / len(steps),
                "tflop_s": sum(launch.flops for launch in launches) / taken / 1e6,
                "gb_s": sum(launch.num_bytes for launch in launches) / taken / 1e3,
                "share_of_limit": least / taken,
            }
        )
    return sorted(lines, key=lambda line: -line["us"])


def measure(names: list[str], rows: list[int]) -> list[dict]:
    """Return a budget for each shape and number of rows, then one for its prompt."""
    budgets = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            model = weights_for(name, Path(folder), torch.bfloat16)
            vocab_size = shape(name).vocab_size
            for num_rows in rows:
                parts = parts_of(events_of(model, "steps", num_rows, vocab_size), num_rows)
                profile = events_of(model, "profile", num_rows, vocab_size)
                kernels = kernels_of(profile, decoding(profile, num_rows))
                budgets.append(
                    {"shape": name, "rows": num_rows, "parts": parts, "kernels": kernels}
                )
                print(name, num_rows, {k: round(v) for k, v in parts.items()}, flush=True)
            prompt = prompt_events(model, vocab_size)
            kernels = kernels_of(prompt, prefilling(prompt))
            budgets.append({"shape": name, "prompt": PROMPT, "kernels": kernels})
    return budgets


def markdown(budgets: list[dict], limits: dict) -> str:
    """Write the tables of docs/performance/."""
    out = [
        f"{limits['cpu']}, {limits['threads']} threads: reads {limits['read_gb_s']:.0f} GB/s at"
        f" best. Decode steps in bf16 with {CONTEXT} to {CONTEXT + STEPS} tokens of context."
        " Made by `python -m benchmarks.step_budget`.",
        "",
        "Microseconds of a step as it runs; medians:",
        "",
        "| shape | rows | schedule | prepare | forward | sample | book | whole step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    steps = [budget for budget in budgets if "rows" in budget]
    for budget in steps:
        parts = budget["parts"]
        cells = " | ".join(f"{parts[part]:,.0f}" for part in (*PARTS, "total_us"))
        out.append(f"| {budget['shape']} | {budget['rows']} | {cells} |")
    out += [
        "",
        "The kernels of these steps, each launched and timed alone (what a step replays in one go"
        " takes less than their sum with Python in between). The limit is the memory's, or what"
        ' torch reaches in bf16 with a square product, whichever binds; "beyond": faster than'
        " that, from a cache or by better products than torch has here:",
        "",
        "| shape | rows | kernel | launches a step | µs a step | GB/s | share of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in steps:
        for line in budget["kernels"]:
            out.append(
                f"| {budget['shape']} | {budget['rows']} | {line['kernel']}"
                f" | {line['launches']:.0f} | {line['us']:,.0f} | {line['gb_s']:.1f}"
                f" | {_share(line['share_of_limit'])} |"
            )
    out += [
        "",
        f"A prompt of {PROMPT:,} tokens. The limits are the memory's, or"
        f" {limits['gemm_tflop_s']:.2f} TFLOP/s in bf16, what torch reaches with a square product"
        " of 1,024, whichever binds:",
        "",
        "| shape | kernel | launches | ms | TFLOP/s | GB/s | share of the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in budgets:
        for line in budget["kernels"] if "prompt" in budget else ():
            out.append(
                f"| {budget['shape']} | {line['kernel']} | {line['launches']:.0f}"
                f" | {line['us'] / 1e3:,.1f} | {line['tflop_s']:.2f} | {line['gb_s']:.1f}"
                f" | {_share(line['share_of_limit'])} |"
            )
    return "\n".join(out) + "\n"


def _share(share: float) -> str:
    """Write a share of the limit; what is faster than the limit was has none."""
    return f"{share:.0%}" if share <= 1.05 else "beyond"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = [*SHAPES, *LARGE_SHAPES]
    parser.add_argument("--shapes", nargs="+", choices=known, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16])
    options = parser.parse_args()
    budgets = measure(options.shapes, options.rows)
    found = machine_limits()
    limits = {
        "cpu": cpu_name(),
        "threads": found.threads,
        "read_gb_s": found.read_gb_s,
        "gemm_tflop_s": found.gemm_gflop_s["bfloat16"] / 1e3,
    }
    results = {"machine": limits, "budgets": budgets}
    keep_results(machine_folder(), "step_budget", results, markdown(budgets, limits))


if __name__ == "__main__":
    run_command(main)
