"""Measure what it costs to divide a model among processes of a CPU, and what joining them takes.

    python -m benchmarks.tensor_parallel    writes tensor_parallel.{json,md} to the machine's folder

The pocket model answers in this process and divided among two, in turn, with as many threads in
all. Each figure is the best of the rounds, because other programs make single ones slow.
"""

from __future__ import annotations

import argparse
import mmap
import statistics
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from engine import LLM, SamplingParams
from engine.kernels.cpu.rank_ops import SharedMemoryRanks, shared_bytes
from engine.trace import events as ev
from engine.trace.command import run_command

SIZES = (1, 2)
REQUESTS = (1, 16)
WIDTHS = (1 << 8, 1 << 10, 1 << 12, 1 << 14)  # floats: 1 to 64 KiB
PROMPT = "Explain what a KV cache is."


@dataclass
class Case:
    """Hold the figures of one size and one number of requests."""

    size: int
    requests: int
    tokens_per_s: float = 0.0
    forward_us: float = 0.0  # of a decode step, the median
    joined_us: float = 0.0  # of it, rank 0's joining, the median
    same: bool = True  # token for token, as one process


def join_us(width: int, times: int = 2000) -> list[float]:
    """Return the microseconds of sums of one row among two threads: p10, p50 and p90."""
    memory = mmap.mmap(-1, shared_bytes(2))
    taken: list[float] = []

    def run(rank: int) -> None:
        ranks = SharedMemoryRanks(memory, rank, 2, [])
        part = torch.ones(1, width)
        for _ in range(times):
            before = ranks.joined().us
            ranks.sum(part, None, torch.float32)
            if rank == 0:
                taken.append(ranks.joined().us - before)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tenths = statistics.quantiles(taken, n=10)
    return [tenths[0], statistics.median(taken), tenths[-1]]


def measure(model: str, num_tokens: int, rounds: int) -> list[Case]:
    """Return a case for each size and number of requests."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    cases = [Case(size, requests) for requests in REQUESTS for size in SIZES]
    expected: dict[int, list[list[int]]] = {}
    options = {"dtype": "float32", "device": "cpu", "log_format": "off", "max_model_len": 1024}
    with ExitStack() as stack:
        engines = {
            size: stack.enter_context(LLM(model, tensor_parallel_size=size, **options))
            for size in SIZES
        }
        seen: dict[int, list[ev.Event]] = {size: [] for size in SIZES}
        for size, engine in engines.items():
            engine.recorder.subscribe(seen[size].extend)
        for _ in range(rounds):
            for case in cases:
                engine = engines[case.size]
                seen[case.size].clear()
                started = time.perf_counter()
                outputs = engine.generate([PROMPT] * case.requests, params, use_tqdm=False)
                speed = num_tokens * case.requests / (time.perf_counter() - started)
                engine.recorder.flush()
                if speed > case.tokens_per_s:
                    steps = [
                        event
                        for event in seen[case.size]
                        if isinstance(event, ev.StepFinished)
                        and event.num_tokens == event.num_decode_tokens
                    ]
                    case.tokens_per_s = speed
                    case.forward_us = statistics.median(step.forward_us for step in steps)
                    case.joined_us = statistics.median(step.joined_us for step in steps)
                answers = [list(output.outputs[0].token_ids) for output in outputs]
                case.same = case.same and answers == expected.setdefault(case.requests, answers)
    return cases


def table(cases: list[Case], joins: dict[int, list[float]]) -> str:
    """Write the figures as Markdown."""
    lines = [
        "| requests | processes | tokens/s | a decode step's forward, ms | of it joining, ms |"
        " same tokens |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case.requests} | {case.size} | {case.tokens_per_s:,.0f} | {case.forward_us / 1e3:.2f}"
        f" | {case.joined_us / 1e3:.2f} | {'yes' if case.same else 'NO'} |"
        for case in cases
    ]
    lines += ["", "| a sum of two ranks | p10, µs | p50, µs | p90, µs |", "|---|---|---|---|"]
    lines += [
        f"| {width * 4 // 1024} KiB | " + " | ".join(f"{us:.1f}" for us in found) + " |"
        for width, found in joins.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tensor_parallel")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    joins = {width: join_us(width) for width in WIDTHS}
    cases = measure(options.model, options.tokens, options.rounds)
    text = (
        f"Measured on {cpu_name()}, {time.strftime('%Y-%m-%d')}: {options.model} in fp32,"
        f" {options.tokens} tokens a request, sizes in turn, the best of {options.rounds} rounds."
        f" Made by `python -m benchmarks.tensor_parallel`.\n\n{table(cases, joins)}\n"
    )
    told = {"cpu": cpu_name(), "model": options.model, "joins": joins}
    told["cases"] = [asdict(case) for case in cases]
    keep_results(machine_folder(), "tensor_parallel", told, text)


if __name__ == "__main__":
    run_command(main)
