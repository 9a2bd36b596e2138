"""Run a process that holds one system and computes requests with a JSON schema, or without.

    python -m benchmarks.peers.structured_worker {Glasshouse|vLLM} MODEL DTYPE THREADS VOCABULARY

Lines on standard input name a workload, as those of `benchmarks.peers.worker` do: `without` and
`with` are the same requests. For vLLM it is started by the Python of vLLM's own environment.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks.peers.limits import CACHE_BYTES, MAX_MODEL_LEN
from benchmarks.peers.worker import serve
from benchmarks.workloads import SCHEMA, Job, Run, Workload

WITHOUT, WITH = "without", "with"
REQUESTS, PROMPT, OUTPUT = 16, 32, 160


def workloads(vocab_size: int) -> dict[str, Workload]:
    """Return the two workloads by name."""
    draw = random.Random(0)
    jobs = [
        Job([draw.randrange(10, vocab_size) for _ in range(PROMPT)], OUTPUT)
        for _ in range(REQUESTS)
    ]
    return {name: Workload(name, f"16 requests {name} a schema", jobs) for name in (WITHOUT, WITH)}


def load(
    system: str, model: str, dtype: str, threads: int
) -> tuple[Callable[[Workload], Run], dict[str, str]]:
    """Return what runs a workload, and the versions behind it."""
    if system == "vLLM":
        from benchmarks.peers.vllm import Vllm

        peer = Vllm(model, dtype, threads, schema=SCHEMA)
        return lambda work: peer.run(work, work.name == WITH), peer.versions()
    if system == "Glasshouse":
        return _glasshouse(model, dtype, threads)
    raise ValueError(f"{system!r} has no schemas here: Glasshouse or vLLM")


def _glasshouse(
    model: str, dtype: str, threads: int
) -> tuple[Callable[[Workload], Run], dict[str, str]]:
    from importlib.metadata import version

    from benchmarks.run_engine import Engine, compiled

    engine = Engine(
        model,
        dtype,
        cpu_threads=threads,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_bytes=CACHE_BYTES,
    )
    grammar = compiled(engine, model, SCHEMA)
    versions = {name: version(name) for name in ("torch", "llguidance")}
    return lambda work: engine.run(work, grammar if work.name == WITH else None), versions


if __name__ == "__main__":
    serve(load, workloads)
