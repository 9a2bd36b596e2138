"""`make gpu` without a GPU: its whole path on tiny shapes, and what its record says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from benchmarks.gpu.interpreter import why_not
from benchmarks.gpu.parts import PARTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]


def dry_run(folder: Path, *arguments: str) -> tuple[dict, str]:
    """Return the record and the page that it has written."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    record = json.loads((folder / "gpu-dry-run.json").read_text())
    return record, (folder / "gpu-dry-run.md").read_text()


def check_decode_attention(record: dict) -> None:
    assert [run["cache"] for run in record["decode_attention"]] == [
        *("float16", "float8_e4m3fn", "float8_e5m2"),
    ]


def test_one_part(tmp_path):
    """The way from the command to the page, by a part that is short."""
    record, page = dry_run(tmp_path, "--only", "decode_attention")
    assert [state["ended"] for state in record["parts"].values()] == ["complete"]
    assert record["limits"]["copy_gb_s"] > 0
    check_decode_attention(record)
    assert "A dry run" in page


@pytest.mark.full
def test_all_parts(tmp_path):
    record, page = dry_run(tmp_path)
    assert list(record["parts"]) == list(PARTS)
    assert {state["ended"] for state in record["parts"].values()} == {"complete"}
    assert record["limits"]["copy_gb_s"] > 0
    assert {check["kernel"].split()[0] for check in record["kernels"]} == {
        *("rms_norm", "add_rms_norm", "add_layer_norm", "silu_and_mul", "qkv_attention"),
        *(
            "embed",
            "angles",
            "copy_blocks",
            "take_inputs",
            "draw",
            "greatest",
            "skinny",
            "quantized",
        ),
    }
    assert {"qkv_attention on e4m3fn", "qkv_attention on e5m2"} < {
        check["kernel"] for check in record["kernels"]
    }
    assert all(check["error"] <= check["allowed"] for check in record["kernels"])
    assert all(found["equal"] == found["prompts"] for found in record["parity"])
    assert all(found["error"] <= found["allowed"] for found in record["bf16_logits"])
    assert [case["requests"] for case in record["speed"]] == [1, 3]
    check_decode_attention(record)
    assert [row["tokens"] for row in record["prompt_attention"][0]["prompts"]] == [5, 9]
    assert [row["gpus"] for row in record["tensor_parallel"]] == [2]  # processes on the CPU
    assert not record["memcheck"][0]["ran"]  # there is no device, and it says so
    assert {"paged_attention", "rotate_and_write"} <= {row["kernel"] for row in record["profile"]}
    assert all(row["us"] > 0 and row["share_of_limit"] > 0 for row in record["profile"])
    assert record["record_cost"][0]["events"] > 0
    assert {peer["system"]: peer["ran"] for peer in record["peers"]} == {
        "Glasshouse": True,
        "transformers, one by one": True,
        "transformers, static 8": True,
        "transformers, static 32": True,
        "transformers, continuous batching": True,
    }
    assert "A dry run" in page
    assert "we ≥ 3.0×" in page
