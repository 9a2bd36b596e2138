"""Measure how a step grows with the work, what record and HTTP cost, and the best thread count.

    python -m benchmarks.growth [--shapes pocket smollm2-135m] [--dtype bfloat16] [--quick]
        [--out FOLDER]

Six questions: a decode step of 1 to 64 requests; of 64 to 2,000 tokens of context; the core alone
with 100 to 100,000 blocks in the pool; 64 requests with the record off, at `steps` and at `full`;
the same workloads in process and through our server; through servers whose workers have 1 thread to
one more than there are cores (the server, its tokenizer and the client share them). Cases that are
compared take turns. Writes `growth.json` (every repeat) and `growth.md` into the machine's folder
of `results/`.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from benchmarks import core_cost
from benchmarks.machine import busy_cores, cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from benchmarks.peers import servers
from benchmarks.peers.install import Peers
from benchmarks.peers.results import row, speed
from benchmarks.peers.tokenizer import save_stand_in
from benchmarks.run_engine import Engine
from benchmarks.shape_names import LARGE_SHAPES, SHAPES
from benchmarks.shapes import shape, weights_for
from benchmarks.transport import by_transport, shown, table
from benchmarks.workloads import workloads
from engine.config import POCKET_MODEL
from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.trace.command import run_command
from engine.worker.host import physical_cores

REQUESTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (64, 250, 500, 1000, 2000)
POOLS = (100, 1_000, 10_000, 100_000)
POOL_REQUESTS = 3  # requests that 100 blocks hold to the end
LEVELS = ("off", "steps", "full")
SHORT = 64  # tokens of context where the number of requests changes
STEPS = 30  # timed in each repeat

Repeats = list[float]


def step_ms(engine: Engine, num_requests: int, context: int, vocab_size: int) -> float:
    """Return milliseconds of one decode step: the median of STEPS in which all requests decode."""
    core, draw = engine.core, random.Random(num_requests * context)
    for number in range(num_requests):
        params = SamplingParams(temperature=0.0, max_tokens=STEPS + 20, ignore_eos=True, seed=0)
        prompt = [draw.randrange(10, vocab_size) for _ in range(context)]
        name = f"{num_requests}-{context}-{number}"
        core.add_request(CoreRequest(request_id=name, prompt_token_ids=prompt, params=params))
    times: list[float] = []
    with engine.looping():
        while core.has_work:
            started = time.perf_counter()
            outputs = core.step()
            took = time.perf_counter() - started
            if len(outputs) == num_requests:
                times.append(took)
    # The first such step still computed the last prompts; after it all requests only decode.
    return 1e3 * statistics.median(times[1 : STEPS + 1])


def in_turns(cases: dict[str, Callable[[], float]], repeats: int) -> dict[str, Repeats]:
    """Run each case `repeats` times, taking turns."""
    seen: dict[str, Repeats] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, run in cases.items():
            seen[name].append(run())
    return seen


def by_size(model: str, dtype: str, vocab_size: int, repeats: int) -> dict[str, dict]:
    """Return milliseconds of decode steps by number of requests, and by context."""
    with closing(Engine(model, dtype, max_model_len=2048)) as engine:
        step_ms(engine, 4, SHORT, vocab_size)  # warm
        return {
            "requests": in_turns(
                {str(n): lambda n=n: step_ms(engine, n, SHORT, vocab_size) for n in REQUESTS},
                repeats,
            ),
            "context": in_turns(
                {str(n): lambda n=n: step_ms(engine, 1, n, vocab_size) for n in CONTEXTS},
                repeats,
            ),
        }


def by_pool(repeats: int) -> dict[str, Repeats]:
    """Return wall microseconds of a step of the core alone, by blocks in the pool."""
    return in_turns(
        {
            str(blocks): lambda b=blocks: core_cost.step_cost_us(b, "steps", POOL_REQUESTS)[
                "wall_us"
            ]
            for blocks in POOLS
        },
        repeats,
    )


def by_level(dtype: str, repeats: int) -> dict[str, Repeats]:
    """Return milliseconds of a decode step of 64 requests on pocket, by level of the record."""
    with ExitStack() as stack:
        engines = {
            level: stack.enter_context(closing(Engine(POCKET_MODEL, dtype, trace=level)))
            for level in LEVELS
        }
        cases = {
            level: lambda e=engine: step_ms(e, 64, SHORT, 2048) for level, engine in engines.items()
        }
        in_turns(cases, 1)  # warm
        return in_turns(cases, repeats)


def by_threads(model: str, dtype: str, vocab_size: int, repeats: int) -> dict[str, Repeats]:
    """Return tokens/s of W1 … W4 through our server, by threads of its worker."""
    works = workloads(vocab_size)
    with ExitStack() as stack:
        running = {
            threads: stack.enter_context(
                closing(servers.glasshouse(model, dtype, threads, Peers()))
            )
            for threads in range(1, physical_cores() + 2)
        }
        cases = {
            f"{name} {threads}": lambda s=server, n=name: speed(row(s.run(works[n]), works[n]))
            for name in works
            for threads, server in running.items()
        }
        in_turns(cases, 1)  # warm
        return in_turns(cases, repeats)


def measure(given: argparse.Namespace) -> dict:
    """Measure all six, with the machine."""
    result: dict = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": physical_cores(),
        "torch": torch.__version__,
        "dtype": given.dtype,
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "busy_cores_before": round(busy_cores(), 3),
        "steps_ms": {},
        "threads_tokens_per_s": {},
    }
    for name in given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            model = weights_for(name, Path(folder), getattr(torch, given.dtype))
            print(f"{name}: 1 to 64 requests, 64 to 2,000 tokens", flush=True)
            about = shape(name)
            vocab_size = about.vocab_size
            save_stand_in(Path(model), vocab_size, about.eos_token_id)  # our server wants one
            result["steps_ms"][name] = by_size(model, given.dtype, vocab_size, given.repeats)
            print(f"{name}: threads", flush=True)
            threads = by_threads(model, given.dtype, vocab_size, given.repeats)
            result["threads_tokens_per_s"][name] = threads
    print("the pool, the record, HTTP", flush=True)
    result["pool_us"] = by_pool(given.repeats)
    result["record_ms"] = by_level(given.dtype, given.repeats)
    result["transport_tokens_per_s"] = by_transport(
        POCKET_MODEL, given.dtype, 2048, list(workloads(2048)), given.repeats
    )
    return result


def markdown(result: dict) -> str:
    """Write the tables of docs/performance/: medians, and least to most of the repeats."""
    out = [
        f"Measured on {result['cpu']}, {result['threads']} threads, {result['dtype']}, torch"
        f" {result['torch']}, {result['date']}; {100 * result['busy_cores_before']:.0f} % of a core"
        " was busy with other work before. In brackets: the least and the most of the repeats.",
        "",
    ]
    for name, steps in result["steps_ms"].items():
        alone = statistics.median(steps["requests"]["1"])
        out += [
            f"Decode step, {name}:",
            "",
            f"| requests, {SHORT} tokens of context each | ms | ms of one request alone × |",
            "|---|---|---|",
        ]
        out += [
            f"| {n} | {shown(ms)} | {statistics.median(ms) / alone:.2f} |"
            for n, ms in steps["requests"].items()
        ]
        out += ["", "| tokens of context, one request | ms |", "|---|---|"]
        out += [f"| {int(n):,} | {shown(ms)} |" for n, ms in steps["context"].items()]
        out.append("")
    out += [
        f"The core alone (it plans, books and records; no model), {POOL_REQUESTS} requests:",
        "",
        "| blocks in the pool | µs a step |",
        "|---|---|",
        *(f"| {int(n):,} | {shown(us)} |" for n, us in result["pool_us"].items()),
        "",
        "The record, 64 requests on the pocket model, where a step is shortest:",
        "",
        "| record | ms a step | more than off |",
        "|---|---|---|",
    ]
    off = statistics.median(result["record_ms"]["off"])
    out += [
        f"| {level} | {shown(ms)} | {100 * (statistics.median(ms) / off - 1):+.1f} % |"
        for level, ms in result["record_ms"].items()
    ]
    out += [
        "",
        "HTTP, the pocket model (the server, its tokenizer and the client share the cores):",
        "",
        *table(result["transport_tokens_per_s"]),
    ]
    for name, speeds in result["threads_tokens_per_s"].items():
        out += [
            "",
            f"Threads of the worker, {name}, over HTTP, tokens/s (the default is as many as there"
            f" are physical cores, {result['threads']} here):",
            "",
        ]
        counts = list(dict.fromkeys(case.split()[1] for case in speeds))
        out.append(
            "| workload | "
            + " | ".join("1 thread" if n == "1" else f"{n} threads" for n in counts)
            + " |"
        )
        out.append("|---" * (len(counts) + 1) + "|")
        for work in dict.fromkeys(case.split()[0] for case in speeds):
            cells = " | ".join(shown(speeds[f"{work} {n}"]) for n in counts)
            out.append(f"| {work} | {cells} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    everything = [*SHAPES, *LARGE_SHAPES]
    default = ["pocket", "smollm2-135m"]
    parser.add_argument("--shapes", nargs="+", choices=everything, default=default)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, the pocket model only")
    parser.add_argument("--out", type=Path, default=machine_folder())
    given = parser.parse_args()
    if given.quick:
        given.repeats, given.shapes = 1, ["pocket"]
    result = measure(given)
    keep_results(given.out, "growth", result, markdown(result))


if __name__ == "__main__":
    run_command(main)
