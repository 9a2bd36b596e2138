"""The kernels of each variant that this machine can run, and memory that shows what they forget."""

from __future__ import annotations

import os

import pytest
import torch

from engine.kernels.cpu import for_variant
from engine.kernels.cpu.build import BuildError, variants_here

# `make coverage` counts lines of Python, which are the same for each variant.
MOST = 1 if "TESTS_BEST_VARIANT" in os.environ else None


@pytest.fixture(params=variants_here()[:MOST])
def ops(request):
    try:
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
