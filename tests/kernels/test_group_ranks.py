"""What ranks join by a process group of torch.distributed, as on GPUs by NCCL: here by gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from engine.kernels import group_ranks


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform != "linux", reason="ranks meet in a file of Linux's kernel")
@pytest.mark.parametrize(
    ("check", "size"), [("joining", 2), ("joining", 3), ("losing", 3), ("again", 1)]
)
def test_processes_join(check, size):
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.kernels.forked_group", check, str(size)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_torch_without_the_newer_name_gathers_by_the_older(monkeypatch):
    monkeypatch.delattr(dist, "all_gather_single", raising=False)
    assert group_ranks._all_gather() is dist.all_gather_into_tensor
