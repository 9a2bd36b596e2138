"""Compare the engine with transformers: same weights, dtype and threads, in one run.

    python -m benchmarks.compare [--shapes pocket opt-125m smollm2-135m] [--dtypes bfloat16 float32]
    [--quick] [--out FOLDER]

Prints one table and writes `compare.json` (every run, not only the medians) and `compare.md` into
FOLDER: in a checkout the machine's folder of `results/`, elsewhere `glasshouse-bench` here. Systems
take turns within a repeat, so that a change of the machine's speed affects all of them. Torch is
imported only after the options were read.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine_folder import RESULTS, keep_results, machine_folder
from benchmarks.shape_names import SHAPES
from engine.trace.command import run_command

REPEATS = 3


def main(argv: Sequence[str] | None = None, name: str = "python -m benchmarks.compare") -> int:
    """Measure, print the table and write the results; returns 0."""
    parser = argparse.ArgumentParser(prog=name, description=__doc__.split("\n")[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        choices=SHAPES,
        default=list(SHAPES),
        help="models to measure [all]",
    )
    parser.add_argument(
        "--dtypes", nargs="+", default=["bfloat16", "float32"], help="of weights [bfloat16 float32]"
    )
    parser.add_argument("--quick", action="store_true", help="one repeat, bfloat16 only")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the results [in a checkout the machine's in benchmarks/results, elsewhere"
        " glasshouse-bench here]",
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.dtypes = ["bfloat16"]
    from benchmarks.beside_transformers import machine, markdown, measure, summary

    rows = []
    for name in options.shapes:
        for dtype in options.dtypes:
            rows += measure(name, dtype, 1 if options.quick else REPEATS)
    out = options.out or (machine_folder() if RESULTS.is_dir() else Path("glasshouse-bench"))
    lines, where = summary(rows), machine()
    results = {"machine": where, "summary": lines, "runs": rows}
    keep_results(out, "compare", results, markdown(lines, where))
    return 0


if __name__ == "__main__":
    run_command(main)
