"""`make gpu` without a GPU: its whole path on tiny shapes, and what its record says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dry_run(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    record = json.loads((tmp_path / "gpu-dry-run.json").read_text())
    assert record["limits"]["copy_gb_s"] > 0
    assert {check["kernel"].split()[0] for check in record["kernels"]} == {
        *("rms_norm", "add_rms_norm", "add_layer_norm", "silu_and_mul", "qkv_attention", "draw")
    }
    assert all(check["error"] <= check["allowed"] for check in record["kernels"])
    assert all(found["equal"] == found["prompts"] for found in record["parity"])
    assert [case["trace"] for case in record["speed"]] == ["steps", "off"]
    assert record["decode_attention"][0]["rows"] == 2
