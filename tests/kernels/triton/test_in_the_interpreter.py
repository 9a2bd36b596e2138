"""Every Triton kernel against its torch reference, and the whole engine on them, on a CPU.

Triton's interpreter must be chosen before Triton is imported, and other tests need the compiler:
so the files `interpreted_*.py` run in processes of their own. Never in bf16: the interpreter's
bf16 arithmetic is wrong, silently.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
from benchmarks.gpu.interpreter import why_not
from tests.support.cases import FULL

HERE = Path(__file__).parent
PYTEST = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
FILES = sorted(path.name for path in HERE.glob("interpreted_*.py"))
# A process takes seconds to import what all files need: two of them, unless the files are long.
PARTS = [[file] for file in FILES] if FULL else [FILES[::2], FILES[1::2]]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("files", PARTS, ids=" ".join)
def test_interpreted(files, request):
    full = ["--full"] if request.config.getoption("--full") else []
    result = subprocess.run(
        [sys.executable, *PYTEST, *full, *(str(HERE / file) for file in files)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.5.2", False), ("3.7.1", "2.4.6", True)],
)
def test_which_versions_of_the_interpreter_work(monkeypatch, triton, numpy, works):
    versions = {"triton": triton, "numpy": numpy}
    monkeypatch.setattr("benchmarks.gpu.interpreter.version", versions.__getitem__)
    assert (why_not() == "") is works
    assert works or numpy in why_not()
