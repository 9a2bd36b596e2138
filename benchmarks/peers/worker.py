"""Run a process that holds one system and runs workloads in it.

    python -m benchmarks.peers.worker {Glasshouse|transformers|vLLM} MODEL DTYPE THREADS VOCABULARY

Every line on standard input names a workload; the answer is one line of JSON on standard output.
What the system itself prints goes to standard error. Between the lines the process sleeps. For vLLM
it is started by the Python of vLLM's own environment, so nothing here imports the engine or torch
before it is known which system is asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.peers.limits import CACHE_BYTES, MAX_MODEL_LEN
from benchmarks.workloads import Run, Workload, workloads

STATIC_BATCH = 16

Runner = Callable[[Workload], Run]
Load = Callable[[str, str, str, int], tuple[Runner, dict[str, str]]]


def load(system: str, model: str, dtype: str, threads: int) -> tuple[Runner, dict[str, str]]:
    """Return what runs a workload, and the versions behind it."""
    if system == "Glasshouse":
        return _glasshouse(model, dtype, threads)
    if system == "transformers":
        return _transformers(model, dtype, threads)
    if system == "vLLM":
        from benchmarks.peers.vllm import Vllm

        peer = Vllm(model, dtype, threads)
        return peer.run, peer.versions()
    raise ValueError(f"{system!r} does not run in a worker: Glasshouse, transformers or vLLM")


def _glasshouse(model: str, dtype: str, threads: int) -> tuple[Runner, dict[str, str]]:
    import torch

    from benchmarks.run_engine import Engine

    engine = Engine(
        model,
        dtype,
        cpu_threads=threads,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_bytes=CACHE_BYTES,
    )
    return engine.run, {"torch": torch.__version__}


def _transformers(model: str, dtype: str, threads: int) -> tuple[Runner, dict[str, str]]:
    import torch
    import transformers

    from benchmarks.run_transformers import Transformers

    torch.set_num_threads(threads)
    peer = Transformers(model, getattr(torch, dtype))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return lambda work: peer.static(work, STATIC_BATCH), versions


def serve(load: Load, workloads: Callable[[int], dict[str, Workload]]) -> None:
    """Load the system that the command line names, then run what standard input asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("threads", type=int)
    parser.add_argument("vocabulary", type=int)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print on standard output

    started = time.perf_counter()
    run, versions = load(given.system, given.model, given.dtype, given.threads)
    loaded = {"load_s": time.perf_counter() - started, "versions": versions}
    answers.write(json.dumps(loaded) + "\n")
    works = workloads(given.vocabulary)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(run(works[line.strip()]))) + "\n")
    answers.flush()
    os._exit(0)  # the answers are written; some libraries hang or complain at exit


if __name__ == "__main__":
    serve(load, workloads)
