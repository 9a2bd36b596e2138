"""Serve one model on several GPUs (`--tensor-parallel-size`), where the machine has them.

Tokens against transformers' first, replayed as CUDA graphs with what joins the GPUs inside; then
the speed of a larger model, on one GPU too; at last a rank is killed. A dry run divides a tiny
model among processes on the CPU's kernels.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu import speed
from benchmarks.gpu.parity import parity
from benchmarks.run_engine import Engine
from engine.kernels.ranks import RankLost
from engine.trace.events import StepFinished

CASES = (
    speed.Case("llama-3.2-1b", 1, (32, 32), (256, 256)),
    speed.Case("llama-3.2-1b", 64, (100, 1024), (100, 256)),
)
HEADS = 4  # of parity's models: on more GPUs they can't be divided


def sizes(gpus: int) -> list[int]:
    """Return the numbers of GPUs to try."""
    return [size for size in (2, 4, 8) if size <= gpus]


def tensor_parallel(
    device: torch.device, folder: Path, wanted: list[int], dry: bool
) -> Iterator[dict]:
    """Check and measure each number of GPUs; say so where there is none to try."""
    if not wanted:
        count = torch.cuda.device_count()
        why = f"this machine has {count} GPU{'s' * (count != 1)}, and it takes two or more"
        yield {"ran": False, "why": why, "prompts": 0, "equal": 0}
        return
    prompts, tokens = (2, 3) if dry else (20, 64)
    for size in wanted:
        names = [name for name in ("llama", "qwen3")[: 1 if dry else 2] if size <= HEADS]
        options = {"tensor_parallel_size": size}
        for found in parity(device, folder, prompts, tokens, names, **options):
            yield {"ran": True, "gpus": size, **found}
    for size in [] if dry else [1, *wanted]:
        engine = speed.start(CASES[0], device, folder, tensor_parallel_size=size)
        measured = [_measure(engine, case) for case in CASES]
        # the last one only: what a killed rank leaves behind is the driver's affair
        told_s = _kill_a_rank(engine) if size == wanted[-1] else 0.0
        for row in measured:
            yield {"ran": True, "gpus": size, "told_s": told_s, "prompts": 0, "equal": 0, **row}
        engine.core.executor.close()
        speed.stop(engine)


def _measure(engine: Engine, case: speed.Case) -> dict:
    work = speed.workload(case)
    engine.run(work)  # warm
    engine.events()
    result = engine.run(work)
    decodes = [
        event.forward_us + event.sample_us
        for event in engine.events()
        if isinstance(event, StepFinished) and event.num_decode_tokens == event.num_tokens
    ]
    return {
        "shape": case.shape,
        "requests": case.jobs,
        "tokens_per_s": sum(job.num_output for job in work.jobs) / result.total_s,
        "decode_step_us": statistics.median(decodes) if decodes else 0.0,
    }


def _kill_a_rank(engine: Engine) -> float:
    """Return the seconds after which the engine tells that a rank was killed."""
    others = engine.core.executor.others
    killed_s = time.monotonic()
    os.kill(others.shares[0].pid, signal.SIGKILL)
    try:
        engine.run(speed.workload(CASES[0]))
    except RankLost:
        return time.monotonic() - killed_s
    raise AssertionError("a model that has lost a rank goes on")
