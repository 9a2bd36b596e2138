"""Judge one solution: run the parts of its check until one fails.

    python -m course.judge NAME FILE      prints a Verdict as JSON

The grade runs it as a process, so that a solution that never returns, or that ends Python, costs
only its own points.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import traceback
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from course.exercise import Wrong


@dataclass(frozen=True)
class Verdict:
    """Say how many parts of a check a solution passes, and what is wrong with the next one."""

    passed: int
    total: int
    sentence: str = ""  # none if everything is right
    what: str = ""  # what the part that failed asks

    @property
    def right(self) -> bool:
        return not self.sentence


def judge(name: str, file: Path) -> Verdict:
    """Run the check of that name on the solution in the file."""
    parts = import_module(f"course.checks.{name}").PARTS
    passed = 0
    try:
        module = _load(name, file)
        for part in parts:
            part(module)
            passed += 1
    except Wrong as wrong:
        sentence = str(wrong)
    except NotImplementedError:
        sentence = f"{_where(file)[0]} is not written yet"
    except SyntaxError as error:
        sentence = f"Python can't read line {error.lineno}: {error.msg}"
    except Exception as error:
        function, line = _where(file)
        place = f"{function}, line {line}" if line else "the engine, on what it got from you"
        said = " ".join(str(error).split()) or "without a message"
        sentence = f"{type(error).__name__} in {place}: {said}"
    else:
        return Verdict(passed, len(parts))
    what = " ".join((inspect.getdoc(parts[passed]) or "").split())
    return Verdict(passed, len(parts), sentence, what)


def _load(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"exercise_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and Triton look it up
    spec.loader.exec_module(module)
    return module


def _where(file: Path) -> tuple[str, int]:
    """Return the function and line of the solution in which the current error was raised."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [frame for frame in frames if Path(frame.filename) == file]
    named = [frame.name for frame in own if not frame.name.startswith("<")]
    return named[-1] if named else "the file", own[-1].lineno or 0 if own else 0


if __name__ == "__main__":
    print(json.dumps(asdict(judge(sys.argv[1], Path(sys.argv[2]).resolve()))))
