"""Run transformers on the same card with the same weights.

One by one, in static batches, and with its own continuous batching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gpu.speed import SHAPES, make_jobs, stop
from benchmarks.run_engine import Engine, Run
from benchmarks.run_transformers import Transformers
from benchmarks.workloads import Job, Workload
from engine.core.garbage_collection import quiet_collector
from engine.one_line import one_line

REQUESTS = 32
LENGTHS = (32, 256)  # in and out


def beside_transformers(
    shape: str, device: torch.device, folder: Path, requests: int, lengths: tuple[int, int]
) -> Iterator[dict]:
    """Yield a result for each system as soon as it is there, the engine's first.

    A result is output tokens/s, and how many times faster the engine is with the same requests.
    One by one and static batches of 8 get the first 4 and the first 8 of them, to end in time.
    """
    where = str(folder / f"{shape}-weights")
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(
            SHAPES[shape], dtype=torch.bfloat16, trust_remote_code=False
        )
    model.save_pretrained(where)
    del model
    jobs = make_jobs(SHAPES[shape].vocab_size, requests, lengths, lengths)
    works = [Workload(n, "", jobs[:c]) for n, c in (("peers", None), ("few", 4), ("some", 8))]
    work = works[0]
    warm = Workload("warm", "", [Job(job.prompt, 2) for job in work.jobs[:2]])
    ours = _ours(shape, device, where, works, warm)
    by_requests = {result["requests"]: result["tokens_per_s"] for result in ours}
    for result in chain(ours, _theirs(shape, device, where, works, warm)):
        if result["ran"]:
            result["engine_is"] = by_requests[result["requests"]] / result["tokens_per_s"]
        yield result


def _ours(
    shape: str, device: torch.device, where: str, works: list[Workload], warm: Workload
) -> list[dict]:
    """Return the engine's results; its memory is free again afterwards."""
    tiny = {"num_gpu_blocks_override": 64, "swap_space": 0.0} if device.type == "cpu" else {}
    engine = Engine(where, "bfloat16", device=device.type, **tiny)
    engine.run(warm)
    results = [_result(shape, "Glasshouse", work, partial(engine.run, work)) for work in works]
    stop(engine)
    return results


def _theirs(
    shape: str, device: torch.device, where: str, works: list[Workload], warm: Workload
) -> Iterator[dict]:
    """Yield a result for each way of transformers."""
    work, few, some = works
    peer = Transformers(where, torch.bfloat16, device)
    peer.one_by_one(warm)
    ways: dict[str, tuple[Workload, Callable[[Workload], Run]]] = {
        "transformers, one by one": (few, peer.one_by_one),
        "transformers, continuous batching": (work, peer.continuous),
        "transformers, static 32": (work, lambda work: peer.static(work, 32)),
        "transformers, static 8": (some, lambda work: peer.static(work, 8)),
    }
    for name, (its, run) in ways.items():
        yield _result(shape, name, its, partial(run, its))


def _result(shape: str, system: str, work: Workload, run: Callable[[], Run]) -> dict:
    """Run a system. A peer that can't run on this machine says why and is left out; we must run."""
    named = {"shape": shape, "requests": len(work.jobs), "system": system}
    try:
        with quiet_collector():  # as the engine's loop has it
            ran = run()
    except Exception as error:  # its versions differ in what they need
        if system == "Glasshouse":
            raise
        return {**named, "ran": False, "why": one_line(error)}
    return {
        **named,
        "ran": True,
        "tokens_per_s": work.num_output / ran.total_s,
        "seconds": ran.total_s,
        "first_token_s": ran.first_token_s,
    }
