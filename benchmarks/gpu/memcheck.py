"""Repeat the kernel checks under compute-sanitizer, which finds every access out of bounds.

Only in bf16 and without the largest heads, because it takes many times as long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NAME = "compute-sanitizer"
FAULTY = 9  # its exit status when there were errors


def find_tool() -> str | None:
    """Find the tool in PATH, or where the CUDA toolkit puts it."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [str(Path(home, "bin")) for home in homes if home]
    return shutil.which(NAME) or shutil.which(NAME, path=os.pathsep.join(places))


def memcheck(
    tool: str | None,
    has_device: bool,
    command: Sequence[str] = (sys.executable, "-m"),
    limit_s: float | None = None,
) -> dict:
    """Return {ran, why} or {ran, errors, seconds}.

    command: what starts a module; tests replace it.
    """
    if tool is None:
        why = f"{NAME} isn't here; it comes with the CUDA toolkit"
        return {"ran": False, "why": why}
    if not has_device:
        return {"ran": False, "why": "there is no device to check"}
    started = time.perf_counter()
    watch = [tool, "--tool", "memcheck", "--target-processes", "all"]
    watch += ["--error-exitcode", str(FAULTY)]
    try:
        said = subprocess.run(
            [*watch, *command, "benchmarks.gpu.parts", "kernels", "--few"],
            # each tensor is an allocation of its own: otherwise an access beside it hits torch's
            # memory, unseen
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired:
        return {"ran": False, "why": f"it was not done after {limit_s:,.0f} s"}
    found = re.findall(r"ERROR SUMMARY: (\d+) error", said.stdout + said.stderr)
    if not found:
        last = (said.stdout + said.stderr).strip().splitlines()[-1:] or ["it said nothing"]
        return {"ran": False, "why": f"exit status {said.returncode}: {last[0]}"}
    taken = time.perf_counter() - started
    return {"ran": True, "errors": sum(map(int, found)), "seconds": round(taken, 1)}
