from __future__ import annotations

import pytest
import torch

from engine.kernels import BACKENDS, TORCH, Backend

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(params=["torch", "fastest"], autouse=True)
def backend(request, monkeypatch):
    """Every test of a layer runs on the plain-torch reference and on this machine's best."""
    if request.param == "torch":
        monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    return request.param
