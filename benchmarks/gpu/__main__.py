"""Check and measure everything that needs a GPU, in one command.

It checks kernels against float64 and the engine against transformers, and measures speed against
the card's measured limits.

    python -m benchmarks.gpu               writes benchmarks/results/gpu-<name>.json and .md
    python -m benchmarks.gpu --only kernels,parity --within 570
    python -m benchmarks.gpu --join a/gpu-x.json b/gpu-x.json
    python -m benchmarks.gpu --dry-run     the same path with tiny shapes on a CPU: kernels in
                                           Triton's interpreter, the engine on the CPU's kernels;
                                           written to the folder for temporary files

Parts run one after another, each in a process of its own with a time limit; one that fails doesn't
stop the rest. Results are written as they come, into what the file already has of other parts: a
part that runs again replaces its own. Exit status 1 if a kernel is off by more than is allowed,
memcheck finds an error, a token differs, logits are too far, or a part has no end; not if something
is slower than wanted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu import interpreter, record, report
from benchmarks.gpu.parts import MEASURE_S, PARTS
from benchmarks.gpu.run_part import part_command, run_part
from engine.trace.command import run_command

RESULTS = Path(__file__).parents[1] / "results"
LEAST_S = 20  # with less time than this left, a part isn't begun

MakeCommand = Callable[..., Sequence[str]]


def main(argv: list[str] | None = None, command: MakeCommand = part_command) -> int:
    """Run the parts. command: see `part_command`; tests replace it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, no GPU")
    parser.add_argument("--only", nargs="+", help=f"these parts: {', '.join(PARTS)}")
    parser.add_argument("--within", type=float, metavar="S", help="seconds for all of it")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--join", nargs="+", type=Path, metavar="FILE", help="records, run nothing")
    options = parser.parse_args(argv)
    dry = options.dry_run
    if options.out is None:  # what a dry run measures is no result
        options.out = Path(tempfile.gettempdir(), "glasshouse-gpu-dry-run") if dry else RESULTS
    if options.join:
        records = [json.loads(path.read_text()) for path in options.join]
        return _conclude(record.joined(records), options.out)
    wanted = [part for word in options.only or PARTS for part in word.split(",") if part]
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"--only: no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if dry and interpreter.why_not():
        parser.error(interpreter.why_not())

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the current part too
    try:
        return _run_parts(wanted, dry, options.within or float("inf"), options.out, command)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_parts(
    wanted: list[str], dry: bool, within_s: float, out: Path, command: MakeCommand
) -> int:
    ends = time.monotonic() + within_s
    found: dict = {}
    said = run_part(command("limits", dry), MEASURE_S, lambda _, result: found.update(result))
    if said["ended"] != "complete":
        print(f"the card's limits could not be measured: {said['why']}", file=sys.stderr)
        return 1
    whole = record.begin(found, dry)
    path = record.path_of(whole, out)
    if path.exists():
        before = json.loads(path.read_text())
        whole = {**before, **whole, "parts": before.get("parts", {})}
    for part in (part for part in PARTS if part in wanted):
        limit_s = min(PARTS[part].limit_s, ends - time.monotonic())
        if limit_s < LEAST_S:
            print(f"no time is left for {part}", file=sys.stderr)
            continue
        _run(part, whole, found, limit_s, out, command(part, dry, whole["limits"]))
    return _conclude(whole, out)


def _run(
    part: str, whole: dict, found: dict, limit_s: float, out: Path, command: Sequence[str]
) -> None:
    """Run one part, and write its results to the record and to the disk."""
    record.forget(whole, part)
    state = {**found, "ended": "unfinished", "seconds": 0.0, "why": "the run was stopped"}
    whole["parts"][part] = state

    def take(where: str, result: dict) -> None:
        whole.setdefault(where, []).append(result)
        record.write(whole, out)

    record.write(whole, out)
    state |= run_part(command, limit_s, take)
    print(f"{part}: {state['ended']} after {state['seconds']:,} s", file=sys.stderr)
    record.write(whole, out)


def _conclude(whole: dict, out: Path) -> int:
    path = record.write(whole, out)
    wrong = report.faults(whole)
    for fault in wrong:
        print("WRONG", json.dumps(fault), file=sys.stderr)
    print(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    run_command(main)
