"""Time a quantized checkpoint and its plain model in turns, in bf16."""

from __future__ import annotations

from benchmarks.peers import results
from benchmarks.run_engine import Engine
from benchmarks.workloads import workloads

TIMED = ("W1", "W2", "W4")
TURNS = 3
POOL = 512 << 20
"""Bytes of the KV cache of each model."""


def paces(
    folders: dict[str, str], vocab_size: int, **quantized: bool
) -> dict[str, dict[str, list[float]]]:
    """Return tokens a second: {workload: {folder: one figure for each turn}}.

    quantized: options of the engine with the folder of that name.
    """
    options = {"kv_cache_memory_bytes": POOL, "max_model_len": 2048}
    engines = {
        name: Engine(model, "bfloat16", **options, **(quantized if name == "quantized" else {}))
        for name, model in folders.items()
    }
    works = {name: workloads(vocab_size)[name] for name in TIMED}
    for engine in engines.values():
        for name in ("W1", "W4"):
            engine.run(works[name])  # for caches
    found: dict[str, dict[str, list[float]]] = {}
    for name, work in works.items():
        found[name] = {of: [] for of in engines}
        for turn in range(TURNS):
            order = list(engines.items())
            for of, engine in order if turn % 2 else reversed(order):
                found[name][of].append(results.speed(results.row(engine.run(work), work)))
    for engine in engines.values():
        engine.close()
    return found
