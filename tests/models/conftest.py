from __future__ import annotations

import pytest
import torch

import engine.kernels

torch.set_num_threads(1)  # tiny matrices: a second thread only waits


@pytest.fixture(params=["torch", "fastest"])
def backend(request, monkeypatch):
    """The plain-torch reference, or this machine's best: what a test with it computes with."""
    if request.param == "torch":
        for name in ("activation", "attention", "embedding", "linear", "norm", "rotary"):
            module = f"engine.layers.{name}.kernels_for"
            monkeypatch.setattr(module, lambda device: engine.kernels.TORCH)
    return request.param
