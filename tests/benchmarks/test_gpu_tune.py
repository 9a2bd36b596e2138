"""The search for a tile, on one tiny case in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from benchmarks.gpu.interpreter import why_not


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_every_pair_is_tried_and_todays_choice_beside_them():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.tune", "--dry-run"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    case, today, *others = result.stdout.splitlines()
    assert case.startswith("Case(rows=2")
    assert today.startswith("  today's choice: ") and " µs, " in today
    pairs = {f"  {tile} in {splits}" for tile in ((32, 4, 3), (32, 4, 4)) for splits in (1, 2)}
    assert {line.partition(":")[0] for line in others} == pairs
