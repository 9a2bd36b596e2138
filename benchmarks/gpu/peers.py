"""transformers on the same card with the same weights: one by one, static batches, its own
continuous batching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.speed import SHAPES, make_jobs, stop
from benchmarks.run_engine import Engine, Run
from benchmarks.run_transformers import Transformers
from benchmarks.workloads import Job, Workload

REQUESTS = 32
LENGTHS = (32, 256)  # in and out


def beside_transformers(
    shape: str, device: torch.device, folder: Path, requests: int, lengths: tuple[int, int]
) -> list[dict]:
    """A result for each system: output tokens/s, and how many times that the engine is."""
    where = str(folder / f"{shape}-weights")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(SHAPES[shape], dtype=torch.bfloat16).save_pretrained(where)
    work = Workload("peers", "", make_jobs(SHAPES[shape].vocab_size, requests, lengths, lengths))
    warm = Workload("warm", "", [Job(job.prompt, 2) for job in work.jobs[:2]])
    results = [_ours(shape, device, where, work, warm)]
    peer = Transformers(where, torch.bfloat16, device)
    peer.one_by_one(warm)
    ways: dict[str, Callable[[], Run]] = {
        "transformers, one by one": lambda: peer.one_by_one(work),
        "transformers, static 8": lambda: peer.static(work, 8),
        "transformers, static 32": lambda: peer.static(work, 32),
        "transformers, continuous batching": lambda: peer.continuous(work),
    }
    results += [_result(shape, name, work, run) for name, run in ways.items()]
    ours = results[0]["tokens_per_s"]
    for result in results:
        if result["ran"]:
            result["engine_is"] = ours / result["tokens_per_s"]
    return results


def _ours(shape: str, device: torch.device, where: str, work: Workload, warm: Workload) -> dict:
    """The engine's result; its memory is free again afterwards."""
    tiny = {"num_gpu_blocks_override": 64, "swap_space": 0.0} if device.type == "cpu" else {}
    engine = Engine(where, "bfloat16", device=device.type, **tiny)
    engine.run(warm)
    result = _result(shape, "Glasshouse", work, lambda: engine.run(work))
    stop(engine)
    return result


def _result(shape: str, system: str, work: Workload, run: Callable[[], Run]) -> dict:
    """A peer that can't run on this machine says why and is left out; we must run."""
    named = {"shape": shape, "requests": len(work.jobs), "system": system}
    try:
        ran = run()
    except Exception as error:  # its versions differ in what they need
        if system == "Glasshouse":
            raise
        return {**named, "ran": False, "why": " ".join(str(error).split())[:200]}
    return {
        **named,
        "ran": True,
        "tokens_per_s": work.num_output / ran.total_s,
        "seconds": ran.total_s,
        "first_token_s": ran.first_token_s,
    }
