"""Choose the folder for the results of this machine, beside those of others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def keep_results(folder: Path, name: str, results: Any, table: str) -> None:
    """Write `name`.json and `name`.md, the table for the documents, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / f"{name}.md").write_text(table)
    print(table)
