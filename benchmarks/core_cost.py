"""Measure what deciding, bookkeeping and recording cost a step, without a worker's time.

    python -m benchmarks.core_cost      writes benchmarks/results/<machine>/core_cost.{json,md}

64 or 256 requests decode; the pool has just the blocks they need, or 100,000; the record is off, at
`steps`, or at `full`, and packed for another process, as the server has it. CPU time of all threads
counts, so the recorder's drain thread is included.
"""

from __future__ import annotations

import platform
import random
import statistics
import time

from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.core.garbage_collection import quiet_collector
from engine.core.messages import CoreRequest, KVShape, StepOutput, StepPlan
from engine.sampling_params import SamplingParams
from engine.trace.command import run_command
from engine.trace.packing_recorder import PackingRecorder

REQUESTS = (64, 256)
LEVELS = ("off", "steps", "full")
STEPS = 320
REPEATS = 11


class NoWork:
    """Draw token 1 for every row at once, in place of a worker."""

    def __init__(self, num_blocks: int):
        self.kv = KVShape(
            num_blocks=num_blocks,
            num_host_blocks=0,
            block_size=16,
            bytes_per_block=0,
            max_model_len=4096,
            vocab_size=1000,
        )

    def execute(self, plan: StepPlan) -> StepOutput:
        return StepOutput(step=plan.step, tokens=[[1]] * len(plan.rows))


def step_cost_us(num_blocks: int, trace: str, num_requests: int = 64) -> dict[str, float]:
    """Return microseconds of wall and of CPU time of one decode step of `num_requests`.

    In each step a sixteenth of them begin a block.
    """
    recorder = PackingRecorder(len, trace)  # another process reads it
    config = EngineConfig(max_num_seqs=num_requests, enable_prefix_caching=True)
    core = EngineCore(config, NoWork(num_blocks), recorder)
    for i in range(num_requests):
        params = SamplingParams(max_tokens=STEPS + 50, ignore_eos=True, seed=0)
        prompt = [i] * (16 + i % 16)
        core.add_request(CoreRequest(request_id=f"r{i}", prompt_token_ids=prompt, params=params))
    for _ in range(20):
        core.step()
    with quiet_collector():
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS):
            core.step()
        recorder.flush()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    recorder.close()
    return {"wall_us": wall / STEPS * 1e6, "cpu_us": cpu / STEPS * 1e6}


def measure() -> list[dict]:
    """Return one row for each number of requests, pool and level, over interleaved repeats."""
    enough = (STEPS + 50) // 16 + 3  # blocks of a request
    cases = [(n, n * enough, trace) for n in REQUESTS for trace in LEVELS]
    cases.append((REQUESTS[0], 100_000, "steps"))
    seen: dict[tuple[int, int, str], list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(REPEATS):
        for requests, blocks, trace in random.sample(cases, len(cases)):
            seen[requests, blocks, trace].append(step_cost_us(blocks, trace, requests))
    return [
        {"requests": requests, "blocks": blocks, "trace": trace, "runs": runs}
        for (requests, blocks, trace), runs in seen.items()
    ]


def markdown(rows: list[dict]) -> str:
    lines = [
        f"Measured on {cpu_name()}, Python {platform.python_version()},"
        f" {time.strftime('%Y-%m-%d')}:"
        " deciding, booking and recording a decode step, on a worker that takes no time; µs of CPU"
        f" time of all threads, the least and the median of {REPEATS} runs of {STEPS} steps.",
        "",
        "| requests | blocks in the pool | record | least µs | median µs |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        times = [run["cpu_us"] for run in row["runs"]]
        lines.append(
            f"| {row['requests']} | {row['blocks']:,} | {row['trace']}"
            f" | {min(times):.0f} | {statistics.median(times):.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the machine's files, and print the table."""
    rows = measure()
    keep_results(machine_folder(), "core_cost", rows, markdown(rows))


if __name__ == "__main__":
    run_command(main)
