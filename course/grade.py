"""Print what is achieved: a table of the twelve steps, and the next hint.

make grade                        what is achieved; writes the files that are missing
make grade STEP=pool              one step, with both of its hints
python -m course --reset pool     the file as it was; yours is kept as pool.py.old
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from course.catalogue import BY_NAME, COURSE
from course.exercise import Exercise
from course.judge import Verdict

ROOT = Path(__file__).resolve().parents[1]
HOLES = Path(__file__).parent / "holes"
YOURS = ROOT / "exercises"
MISSING = 3
"""The exit status where points are missing: 1 is that of a grader that failed."""
LIMIT_S = 60  # for one check; on a slow machine most of it is the import of torch


@dataclass(frozen=True)
class Result:
    """Hold what is known about one step of yours."""

    exercise: Exercise
    state: str  # "right", "wrong", "not begun" or "can't run"
    points: int = 0
    sentence: str = ""
    what: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 0 if all that is asked for is achieved, else `MISSING`."""
    arguments = _parser().parse_args(argv)
    if arguments.reset:
        reset(arguments.folder, arguments.reset)
        return 0
    begin(arguments.folder)
    wanted = [BY_NAME[arguments.step]] if arguments.step else list(COURSE)
    results = grade(arguments.folder, wanted)
    print("\n".join(told(results, arguments.folder, both_hints=bool(arguments.step))))
    return 0 if all(result.state == "right" for result in results) else MISSING


def begin(folder: Path) -> list[str]:
    """Write the files that aren't in the folder; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [e.name for e in COURSE if not (folder / f"{e.name}.py").exists()]
    for name in missing:
        (folder / f"{name}.py").write_bytes(_hole(name))
    return missing


def reset(folder: Path, name: str) -> None:
    """Write a file anew, and keep the one that was there beside it."""
    file = folder / f"{name}.py"
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        file.replace(file.with_suffix(".py.old"))
    file.write_bytes(_hole(name))


def grade(folder: Path, exercises: Sequence[Exercise]) -> list[Result]:
    """Judge the solutions in the folder, as many at once as there are cores."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda exercise: _result(folder, exercise), exercises))


def _result(folder: Path, exercise: Exercise) -> Result:
    file = folder / f"{exercise.name}.py"
    if file.read_bytes() == _hole(exercise.name):
        return Result(exercise, "not begun")
    missing = [name for name in exercise.needs if find_spec(name) is None]
    if missing:
        return Result(exercise, "can't run", sentence=f"its check needs {' and '.join(missing)}")
    verdict = _judged(exercise, file)
    points = exercise.points * verdict.passed // verdict.total
    state = "right" if verdict.right else "wrong"
    return Result(exercise, state, points, verdict.sentence, verdict.what)


def _judged(exercise: Exercise, file: Path) -> Verdict:
    """Run the judge as a process, and read its verdict from the last line that it prints."""
    command = [sys.executable, "-m", "course.judge", exercise.name, str(file)]
    try:
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Verdict(0, 1, f"it did not end within {LIMIT_S} s")
    lines = ran.stdout.splitlines()
    if ran.returncode or not lines:
        said = ran.stderr.strip().splitlines()
        return Verdict(0, 1, f"Python ended with status {ran.returncode}: {(said or [''])[-1]}")
    return Verdict(**json.loads(lines[-1]))


def _hole(name: str) -> bytes:
    return (HOLES / f"{name}.py").read_bytes()


def told(results: Sequence[Result], folder: Path, both_hints: bool = False) -> list[str]:
    """Word the results: a line for each step, what is wrong, and hints for the first of these."""
    lines = []
    for result in results:
        exercise = result.exercise
        number = COURSE.index(exercise) + 1
        points = f"{result.points:3} of {exercise.points:2}"
        lines.append(f"{number:2}  {exercise.name:12} {exercise.title:38} {points}  {result.state}")
        if result.sentence:
            lines.append(f"    → {result.sentence}.")
    total = sum(result.exercise.points for result in results)
    lines += ["", f"{sum(result.points for result in results)} of {total} points"]
    open_ones = [result for result in results if result.state in ("wrong", "not begun")]
    if open_ones:
        lines += ["", *_next(open_ones[0], folder, both_hints)]
    return lines


def _next(result: Result, folder: Path, both_hints: bool) -> list[str]:
    exercise = result.exercise
    file = os.path.relpath(folder / f"{exercise.name}.py")
    lines = [f"Next: {file}"]
    if result.what:
        lines.append(f"  asked: {result.what}")
    lines.append(f"  hint: {exercise.hints[0]}")
    if both_hints:
        lines.append(f"  more: {exercise.hints[1]}")
    else:
        lines.append(f"  (one hint more: make grade STEP={exercise.name})")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m course", description="Grade your exercises (docs/EXERCISES.md)."
    )
    add = parser.add_argument
    add("step", nargs="?", choices=[*BY_NAME], metavar="STEP", help="one step, with both hints")
    add("--reset", choices=[*BY_NAME], metavar="STEP", help="write its file as it was")
    add("--folder", type=Path, default=YOURS, help="where your files are (default: exercises/)")
    return parser
