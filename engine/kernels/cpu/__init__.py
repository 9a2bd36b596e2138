"""Provide native kernels for the CPU: C++, compiled on first use by the machine's own compiler.

`native()` is all that others need: the operations, or None where they can't be built; `why()` says
why. `GLASSHOUSE_NATIVE=0` turns them off, `GLASSHOUSE_CPU_VARIANT=avx2` (or another of
`build.VARIANTS`) chooses what they are compiled for. Read `simd.h`, then `linear.cpp` (where most
of a step's time goes), then `attention.cpp`.
"""

from __future__ import annotations

import os
from functools import lru_cache

from engine.kernels.cpu.build import SOURCES, BuildError, is_built, library_path, load
from engine.kernels.cpu.build_folder import folder_to_build_in, said_of
from engine.kernels.cpu.choice import choose, is_known
from engine.kernels.cpu.ops import NativeOps


def native() -> NativeOps | None:
    """Return the operations for this CPU. The first call may compile for some seconds."""
    return _load()[0]


def available() -> bool:
    """Return whether there are native kernels here."""
    return _load()[0] is not None


def must_compile() -> bool:
    """Return whether the first call of `native` will compile, which takes up to some minutes."""
    if os.environ.get("GLASSHOUSE_NATIVE") == "0":
        return False
    try:
        return not (is_known() and is_built(choose().variant))
    except BuildError:
        return False  # it can't


def not_kept() -> str:
    """Say that kernels in use aren't kept in the cache, why, and what to do; "" if they are."""
    ops = native() if folder_to_build_in().reason else None
    return "" if ops is None else said_of(library_path(ops.variant, SOURCES).name)


def why() -> str:
    """Say why this variant is used; or why there are no native kernels, and what that costs."""
    return _load()[1]


@lru_cache(maxsize=1)
def _load() -> tuple[NativeOps | None, str]:
    if os.environ.get("GLASSHOUSE_NATIVE") == "0":
        return None, "native CPU kernels are off (GLASSHOUSE_NATIVE=0); plain torch computes"
    try:
        choice = choose()
        return for_variant(choice.variant), choice.why
    except BuildError as error:
        return None, (
            f"no native CPU kernels: {error}. Plain torch computes instead; "
            "expect a third to a half of the decoding speed"
        )


def for_variant(variant: str) -> NativeOps:
    """Return the operations compiled for one variant, for tests and comparisons.

    Raises BuildError.
    """
    return NativeOps(load(variant), variant)


def forget() -> None:
    """Clear the choice of a variant, so that the next call chooses again. For tests."""
    _load.cache_clear()
