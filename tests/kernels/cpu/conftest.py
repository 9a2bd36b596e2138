"""The kernels of each variant that this machine can run, and memory that shows what they forget."""

from __future__ import annotations

import os

import pytest
import torch

from engine.kernels.cpu import for_variant
from engine.kernels.cpu.build import BuildError, variants_here
from tests.kernels.cpu import software_tiles

IN_SOFTWARE = "amx" not in variants_here()
"""Whether the kernels for AMX compute tile instructions in software."""


def variants() -> list:
    """Return the variants to test: those for this CPU, and the one for AMX on any that can."""
    if "TESTS_BEST_VARIANT" in os.environ:  # `make coverage`: lines of Python are the same for all
        return [variants_here()[0]]
    no_amx = pytest.mark.skipif(not software_tiles.can_run(), reason=software_tiles.WHY_NOT)
    return [*([pytest.param("amx", marks=no_amx)] if IN_SOFTWARE else []), *variants_here()]


@pytest.fixture(params=variants())
def ops(request):
    try:
        if request.param == "amx" and IN_SOFTWARE:
            return software_tiles.ops()
        return for_variant(request.param)
    except BuildError as error:
        if "no C++ compiler" not in str(error):
            raise  # sources that don't compile are no reason to skip
        pytest.skip(str(error))


@pytest.fixture
def poisoned_memory():
    """`torch.empty` gives not-a-number, so that a place which a kernel forgets is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
