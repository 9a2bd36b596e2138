"""Build the kernels for AMX with tile instructions in software (`tiles_in_software.h`), for tests.

CI seldom runs on a machine with AMX. With AVX512-BF16 these sources run there all the same; the
product neither ships nor loads such a library.
"""

from __future__ import annotations

import ctypes
import fcntl
from functools import lru_cache
from pathlib import Path

import pytest

from engine.kernels.cpu import build
from engine.kernels.cpu.ops import NativeOps

HEADER = Path(__file__).with_name("tiles_in_software.h")
WHY_NOT = "no AVX512-BF16 here, which the kernels for AMX need beside tiles"


def can_run() -> bool:
    """Return whether this CPU has all that the variant needs but tiles."""
    return "avx512_bf16" in build.variants_here()


def load() -> ctypes.PyDLL:
    """Return the library, built if it isn't in the cache. Raises BuildError.

    Optimised a little only: that compiles in a quarter of the time. One process builds at once.
    """
    with HEADER.open() as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setattr(build, "FLAGS", ("-O1", *build.FLAGS[1:], "-include", str(HEADER)))
        patch.setattr(build, "HEADERS", (*build.HEADERS, str(HEADER)))  # its bytes name the file
        return build.load("amx")


@lru_cache
def ops() -> NativeOps:
    """Return the operations of that library. Raises BuildError."""
    return NativeOps(load(), "amx")
