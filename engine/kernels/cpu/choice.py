"""Choose the variant of the kernels by timing its main work: products of few and many rows.

The name of a CPU doesn't tell which of the variants it can run is fastest. So at the first start
the products of each are compiled alone and timed, less than a second in all, on weights that no
cache holds; the outcome is kept beside the library. `GLASSHOUSE_CPU_VARIANT` decides by name.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from engine.kernels.cpu.build import (
    VARIANTS,
    BuildError,
    cpu_name,
    library_path,
    load,
    variants_here,
    write_whole,
)
from engine.kernels.cpu.linear_ops import LINEAR

FORCE = "GLASSHOUSE_CPU_VARIANT"
PROBE = ("linear_panels.cpp", "linear_amx.cpp")
"""Sources of the products by layout."""
OUTPUTS, INPUTS = 3072, 576  # a feed-forward of SmolLM2-135M
SETS = 12  # weights that take turns: 42 MB
ROWS = (1, 16, 128)
ROUNDS = 13
CLEARLY = 0.9  # of the product of the three times
BF16 = 1  # enum Type in simd.h


class ChosenVariant(NamedTuple):
    """Hold a variant, and why it was chosen, for the log."""

    variant: str
    why: str


def choose() -> ChosenVariant:
    """Return the variant for this CPU. Raises `BuildError`: no compiler, or a wrong name."""
    here = variants_here()
    forced = os.environ.get(FORCE)
    if forced:
        if forced not in here:
            known = "unknown" if forced not in VARIANTS else "not for this CPU"
            raise BuildError(f"{FORCE}={forced} is {known}; choose one of {', '.join(here)}")
        return ChosenVariant(forced, f"as {FORCE} says")
    candidates = _candidates()
    if len(candidates) < 2:
        return ChosenVariant(here[0], "the only one for this CPU")
    times = _kept(candidates)
    if times is None:
        times = measure(candidates)
        write_whole(_file(candidates), json.dumps(times))
    best = best_of(times)
    said = "; ".join(
        f"{variant} {' / '.join(f'{us:.0f}' for us in times[variant])}" for variant in candidates
    )
    rows = " / ".join(map(str, ROWS))
    return ChosenVariant(
        best, f"the fastest by measurement, µs of a product of {rows} rows by one thread: {said}"
    )


def is_known() -> bool:
    """Return whether `choose` has nothing to compile or to measure."""
    candidates = _candidates()
    return bool(os.environ.get(FORCE)) or len(candidates) < 2 or _kept(candidates) is not None


def _candidates() -> list[str]:
    return [variant for variant in variants_here() if variant != "portable"]


def _kept(candidates: list[str]) -> dict[str, list[float]] | None:
    """Return the times that were measured here before; None if there are none of these variants."""
    try:
        times = json.loads(_file(candidates).read_text())
        return times if set(dict(times)) == set(candidates) else None
    except (OSError, ValueError, TypeError):
        return None


def best_of(times: dict[str, list[float]]) -> str:
    """Return the fastest variant; the first by name unless another is clearly faster."""
    best = next(name for name in VARIANTS if name in times)
    for variant in VARIANTS:
        if variant in times and math.prod(times[variant]) < CLEARLY * math.prod(times[best]):
            best = variant
    return best


def measure(variants: list[str]) -> dict[str, list[float]]:
    """Return the least microseconds of a product for each of `ROWS`, by variant, run in turn.

    One thread computes, and its processor time counts: several wait for each other, and beside a
    busy program even the least of their times is the time of that waiting.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure({variant: _product(variant) for variant in variants})
    finally:
        torch.set_num_threads(threads)


def _measure(runs: dict[str, Callable[[bytes], object]]) -> dict[str, list[float]]:
    weights = torch.ones(SETS, OUTPUTS * INPUTS, dtype=torch.bfloat16)
    x = torch.ones(max(ROWS), INPUTS, dtype=torch.bfloat16)
    y = torch.empty(max(ROWS), OUTPUTS, dtype=torch.bfloat16)
    taken: dict[str, list[float]] = {variant: [] for variant in runs}
    turn = 0
    for rows in ROWS:
        times: dict[str, list[float]] = {variant: [] for variant in runs}
        for round_ in range(ROUNDS):
            for variant, run in runs.items():
                turn += 1
                arguments = LINEAR(
                    x.data_ptr(),
                    weights[turn % SETS].data_ptr(),
                    0,
                    y.data_ptr(),
                    rows,
                    OUTPUTS,
                    INPUTS,
                    INPUTS,
                    OUTPUTS,
                    BF16,
                    BF16,
                    BF16,
                    False,
                )
                started = time.thread_time()
                run(arguments)
                if round_:  # the first also reads code
                    times[variant].append((time.thread_time() - started) * 1e6)
        for variant in runs:
            taken[variant].append(round(min(times[variant]), 1))
    return taken


def _product(variant: str) -> Callable[[bytes], object]:
    library = load(variant, PROBE)
    if variant == "amx":
        library.glasshouse_allow_amx()
        run = library.glasshouse_linear_amx
    else:
        run = library.glasshouse_linear_panels
    run.argtypes, run.restype = [ctypes.c_char_p], None
    return run


def _file(candidates: list[str]) -> Path:
    """Return where the times are kept: for this kind of CPU, these sources and this compiler."""
    probe = library_path(candidates[0], PROBE)
    return probe.with_name(f"{probe.stem}-{cpu_name()}.json")
