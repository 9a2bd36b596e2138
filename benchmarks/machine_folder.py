"""Choose the folder for the results of this machine, beside those of others."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.machine import cpu_name

RESULTS = Path(__file__).resolve().parent / "results"


def machine_folder(cpu: str | None = None, variant: str | None = None) -> Path:
    """Return `results/amd-epyc-avx2`: the processor's name, and the best kernels it can run.

    Some names tell nothing of the generation, so the kernels are named too.
    """
    if variant is None:  # imported here: who names a variant need not wait for torch
        from engine.kernels.cpu.build import variants_here

        variant = variants_here()[0]
    name = re.sub(r"\((R|TM|C)\)", "", cpu or cpu_name(), flags=re.IGNORECASE)
    words = re.findall(r"[a-z0-9]+", f"{name} {variant}".lower())
    return RESULTS / "-".join(words)
