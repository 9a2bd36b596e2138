"""Time a quantized checkpoint and its plain model in turns, in bf16."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.peers import results
from benchmarks.run_engine import Engine
from benchmarks.workloads import workloads
from engine.kernels.machine_limits import memory_probe

TURNS = {"W1": 7, "W2": 3, "W4": 5}
"""How often each workload is run with each model."""
BOUND = "W1"
"""The workload that memory bounds: it is measured beside each of its runs."""
POOL = 512 << 20
"""Bytes of the KV cache of each model."""


class Found(NamedTuple):
    """Hold what was measured; lists have one figure for each turn."""

    paces: dict[str, dict[str, list[float]]]  # tokens a second: {workload: {folder: …}}
    read_gb_s: dict[str, list[float]]  # of memory, beside each run of BOUND: {folder: …}


def paces(folders: dict[str, str], vocab_size: int, **quantized: bool) -> Found:
    """Time each folder's model on each workload, in turns.

    quantized: options of the engine with the folder of that name.
    """
    options = {"kv_cache_memory_bytes": POOL, "max_model_len": 2048}
    engines = {
        name: Engine(model, "bfloat16", **options, **(quantized if name == "quantized" else {}))
        for name, model in folders.items()
    }
    works = {name: workloads(vocab_size)[name] for name in TURNS}
    for engine in engines.values():
        for name in ("W1", "W4"):
            engine.run(works[name])  # for caches
    found = Found({name: {of: [] for of in engines} for name in works}, {of: [] for of in engines})
    probe = memory_probe()
    for name, work in works.items():
        for turn in range(TURNS[name]):
            order = list(engines.items())
            for of, engine in order if turn % 2 else reversed(order):
                before = probe() if name == BOUND else 0.0
                found.paces[name][of].append(results.speed(results.row(engine.run(work), work)))
                if name == BOUND:
                    found.read_gb_s[of].append(max(before, probe()))
    for engine in engines.values():
        engine.close()
    return found
