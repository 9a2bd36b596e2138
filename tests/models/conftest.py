from __future__ import annotations

import pytest
import torch

from engine.kernels import BACKENDS, TORCH, Backend

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(params=["torch", "fastest"])
def backend(request, monkeypatch):
    """The plain-torch reference, or this machine's best: what a test with it computes with."""
    if request.param == "torch":
        monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    return request.param
