"""The course: each solution passes, each hole and each common mistake fails with its sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from course import grade
from course.catalogue import COURSE
from course.judge import Verdict, judge
from tests.exercises.mistakes import MISTAKES

HERE = Path(__file__).parent
SOLUTIONS = HERE / "solutions"
EASY = [exercise for exercise in COURSE if not exercise.needs]
NAMES = [exercise.name for exercise in COURSE]
HOLES_SAY = {
    "reading": "longest_wait is not written yet",
    "slots": "slots is not written yet",
    "pool": "__init__ is not written yet",
    "waste": "waste is not written yet",
    "planning": "plan is not written yet",
    "scheduling": "ended in the order long, short, middle; shortest first would be",
    "prefix": "chain is not written yet",
    "eviction": "only 0 of its tokens are still cached, 12 should be",
    "preemption": "was preempted by recompute; the rule asks for swap",
    "sampler": "draw is not written yet",
    "speculation": "propose is not written yet",
    "kernel": "the result has NaN (8 tokens in blocks of 8",
}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, Verdict]:
    """What is said of the kernels, judged in one process: Triton must not be imported in this."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("kernels")
    files = {"solution": SOLUTIONS / "kernel.py", "hole": grade.HOLES / "kernel.py"}
    source = files["solution"].read_text(encoding="utf-8")
    for mistake in (m for m in MISTAKES if m.name == "kernel"):
        files[mistake.new] = folder / f"{len(files)}.py"
        files[mistake.new].write_text(source.replace(mistake.old, mistake.new), encoding="utf-8")
    program = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path\n"
        "from course.judge import judge\n"
        "print(json.dumps([asdict(judge('kernel', Path(f))) for f in sys.argv[1:]]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, files.values())]
    ran = subprocess.run(command, cwd=grade.ROOT, capture_output=True, check=True, timeout=120)
    verdicts = (Verdict(**told) for told in json.loads(ran.stdout.splitlines()[-1]))
    return dict(zip(files, verdicts, strict=True))


@pytest.fixture
def judged(request):
    """`judged(name, key, file)`: the verdict on the file; that of the kernel called `key`."""

    def verdict(name: str, key: str, file: Path) -> Verdict:
        return request.getfixturevalue("kernels")[key] if name == "kernel" else judge(name, file)

    return verdict


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes(name, judged):
    verdict = judged(name, "solution", SOLUTIONS / f"{name}.py")
    assert verdict.right, verdict
    assert verdict.passed == verdict.total


@pytest.mark.parametrize("name", NAMES)
def test_the_hole_fails_with_a_sentence(name, judged):
    verdict = judged(name, "hole", grade.HOLES / f"{name}.py")
    assert verdict.passed == 0 and HOLES_SAY[name] in verdict.sentence
    assert verdict.what.endswith((".", '".')), "what is asked stands beside it"


@pytest.mark.parametrize(
    ("name", "mistake"), [(m.name, m) for m in MISTAKES],
    ids=[f"{m.name}-{number}" for number, m in enumerate(MISTAKES)],
)  # fmt: skip
def test_a_mistake_is_told(name, mistake, tmp_path, judged):
    source = (SOLUTIONS / f"{name}.py").read_text(encoding="utf-8")
    assert mistake.old in source
    file = tmp_path / f"{name}.py"
    file.write_text(source.replace(mistake.old, mistake.new), encoding="utf-8")
    verdict = judged(name, mistake.new, file)
    assert not verdict.right
    assert mistake.says in verdict.sentence, verdict.sentence


def test_every_step_has_its_files_and_its_place_on_the_page():
    assert len(COURSE) == 12 and sum(exercise.points for exercise in COURSE) == 100
    page = (grade.ROOT / "docs" / "EXERCISES.md").read_text(encoding="utf-8")
    named = re.findall(r"^## (\d+)\. .*\n\n`exercises/(\w+)\.py`", page, re.MULTILINE)
    assert named == [(str(number), name) for number, name in enumerate(NAMES, 1)]
    for folder in (grade.HOLES, SOLUTIONS):
        assert sorted(NAMES) == sorted(p.stem for p in folder.glob("[a-z]*.py")), folder


def test_checks_that_need_no_torch_import_none():
    program = (
        "import sys; from pathlib import Path; from course.judge import judge\n"
        f"for name in {[e.name for e in EASY]}:\n"
        f"    assert judge(name, Path({str(SOLUTIONS)!r}) / f'{{name}}.py').right, name\n"
        "assert not {'torch', 'numpy', 'transformers', 'pytest'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=grade.ROOT, check=True, timeout=60)


def test_the_first_grade_writes_the_files_and_runs_no_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(grade.subprocess, "run", None)  # what would start a check
    folder = tmp_path / "exercises"
    assert grade.main(["--folder", str(folder)]) == grade.MISSING
    assert sorted(p.stem for p in folder.iterdir()) == sorted(NAMES)
    told = capsys.readouterr().out
    assert told.count("not begun") == 12 and "0 of 100 points" in told
    assert "reading.py" in told and COURSE[0].hints[0] in told
    assert COURSE[0].hints[1] not in told


def test_what_is_achieved_is_told_with_the_next_hint(tmp_path, capsys):
    grade.begin(tmp_path)
    for name in ("reading", "slots"):
        (tmp_path / f"{name}.py").write_bytes((SOLUTIONS / f"{name}.py").read_bytes())
    half = (SOLUTIONS / "prefix.py").read_text(encoding="utf-8").replace("salt.encode()", "b''")
    (tmp_path / "prefix.py").write_text(half, encoding="utf-8")
    (tmp_path / "waste.py").write_text("def waste(events)\n", encoding="utf-8")
    (tmp_path / "pool.py").write_text("import os\nos._exit(3)\n", encoding="utf-8")
    assert grade.main(["--folder", str(tmp_path)]) == grade.MISSING
    told = capsys.readouterr().out
    assert "12 of 100 points" in told and f"1 of {len(COURSE)}" not in told
    assert re.search(r"reading .* 4 of  4  right", told)
    assert re.search(r"prefix .* 2 of  8  wrong\n.*alice and bob", told)
    assert "Python can't read line 1: expected ':'." in told
    assert "Python ended with status 3" in told
    assert "Next: " in told and COURSE[2].hints[0] in told  # pool is the first that isn't right


def test_one_step_shows_both_hints_and_what_is_asked(tmp_path, capsys):
    grade.begin(tmp_path)
    (tmp_path / "slots.py").write_text("def slots(*_): return []\n", encoding="utf-8")
    assert grade.main(["slots", "--folder", str(tmp_path)]) == grade.MISSING
    told = capsys.readouterr().out
    hints = next(exercise for exercise in COURSE if exercise.name == "slots").hints
    assert all(hint in told for hint in hints)
    assert "asked: Give the slots of consecutive tokens" in told and "0 of 6 points" in told
    (tmp_path / "slots.py").write_bytes((SOLUTIONS / "slots.py").read_bytes())
    assert grade.main(["slots", "--folder", str(tmp_path)]) == 0


def test_an_endless_loop_costs_only_its_own_points(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "LIMIT_S", 5)
    grade.begin(tmp_path)
    (tmp_path / "slots.py").write_text("while True: pass\n", encoding="utf-8")
    (tmp_path / "reading.py").write_bytes((SOLUTIONS / "reading.py").read_bytes())
    reading, slots = grade.grade(tmp_path, COURSE[:2])
    assert reading.state == "right"
    assert (slots.state, slots.sentence) == ("wrong", "it did not end within 5 s")


def test_what_a_check_lacks_is_said(tmp_path, monkeypatch):
    grade.begin(tmp_path)
    (tmp_path / "kernel.py").write_bytes((SOLUTIONS / "kernel.py").read_bytes())
    monkeypatch.setattr(grade, "find_spec", lambda name: None if name == "triton" else name)
    (result,) = grade.grade(tmp_path, COURSE[-1:])
    assert (result.state, result.sentence) == ("can't run", "its check needs triton")


def test_reset_keeps_what_was_there(tmp_path):
    (tmp_path / "pool.py").write_text("mine = 1\n", encoding="utf-8")
    assert grade.main(["--folder", str(tmp_path), "--reset", "pool"]) == 0
    assert (tmp_path / "pool.py").read_bytes() == (grade.HOLES / "pool.py").read_bytes()
    assert (tmp_path / "pool.py.old").read_text(encoding="utf-8") == "mine = 1\n"
