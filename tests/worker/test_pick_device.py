"""A device that is not there is refused in one line, before anything asks it for more."""

from __future__ import annotations

import pytest
import torch

from engine.config import ConfigError
from engine.worker.host import pick_device


@pytest.mark.parametrize("there", [True, False])
def test_cuda_where_there_is_none_is_refused(there, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device("auto") == torch.device("cuda" if there else "cpu")
    assert pick_device("cpu") == torch.device("cpu")
    if there:
        assert pick_device("cuda", rank=1) == torch.device("cuda", 1)
        return
    with pytest.raises(ConfigError, match=r"--device is cuda, but torch .* finds no CUDA device"):
        pick_device("cuda")
