"""Every command and option that a page names within its text exists: nothing is run here.

Code blocks of a shell are `test_commands.py`'s. A word in capitals stands for what the reader has.
"""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.scripts.koyeb_reference import FLAGS
from docs.scripts.server import ROOT
from engine.config.accepted import ACCEPTED
from engine.config.options import FIELDS, flag_of
from glasshouse.command import PROGRAMS
from tests.docs.test_commands import usage
from tests.docs.test_pages import PAGES, prose

SPAN = re.compile(r"`([^`]+)`")
INDENTED = re.compile(r"^    ((?:python|glasshouse|make) .*)$", re.MULTILINE)
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(python|glasshouse|make|pytest) \S")
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
FOLDERS = (
    "benchmarks",
    "clients",
    "contrib",
    "course",
    "docs",
    "engine",
    "examples",
    "lab",
    "pocket",
)
PYTHON = [*ROOT.glob("*.py"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))]
OTHERS = {  # of programs that are not ours
    *("--gpus", "--cpus", "--replicas", "--show", "--threads", "--model_args"),
    *("--min-replicas", "--max-replicas"),
}


def commands(page: Path) -> list[str]:
    """Return the commands of a page's text, each in one line."""
    text = prose(page)
    found = [*SPAN.findall(text), *INDENTED.findall(text)]
    return [line for line in (" ".join(code.split()) for code in found) if PROGRAM.match(line)]


def check(line: str) -> None:
    """Raise AssertionError for a command whose program, option or file doesn't exist."""
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    program, rest = words[0].rpartition("/")[2], words[1:]
    flags = {flag for word in rest for flag in OPTION.findall(word.partition("=")[0])}
    if program == "make":
        assert re.search(rf"^{re.escape(rest[0])}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    for word in rest:
        if "/" in word and not word.startswith("-") and "://" not in word:
            assert (ROOT / word).exists(), f"there is no {word}"
    if program == "glasshouse":
        if rest[0].startswith("--"):
            return
        assert rest[0] in PROGRAMS, f"glasshouse has no {rest[0]}"
        known = set(OPTION.findall(usage("-m", "glasshouse", rest[0])))
    elif program == "pytest":
        known = {"--full"}
    elif rest[0] == "-m":
        if rest[1] in ("pip", "venv"):
            return
        known = of_module(rest[1])
    elif (ROOT / rest[0]).is_file():
        known = set(OPTION.findall((ROOT / rest[0]).read_text(encoding="utf-8")))
    else:
        assert rest[0].startswith("-"), f"there is no {rest[0]}"
        return
    assert flags <= known, f"{line}: there is no {', '.join(sorted(flags - known))}"


def of_module(name: str) -> set[str]:
    """Return the options that a module's file names, or the files of its package."""
    found = find_spec(name)
    assert found is not None and found.origin, f"there is no module {name}"
    path = Path(found.origin)
    if path.name == "__init__.py":
        assert (path.parent / "__main__.py").is_file(), f"python -m {name} can't be run"
        files = sorted(path.parent.glob("*.py"))
    else:
        assert "__main__" in path.read_text(encoding="utf-8"), f"python -m {name} does nothing"
        files = [path]
    return {flag for file in files for flag in OPTION.findall(file.read_text(encoding="utf-8"))}


@lru_cache
def every_option() -> set[str]:
    """Return all options: of the engine, those of vLLM that it takes, of our programs, of Koyeb."""
    known = {flag_of(name) for name in FIELDS} | {flag_of(one.name) for one in ACCEPTED}
    known |= {"--no-" + flag.removeprefix("--") for flag in known} | OTHERS
    known |= {flag for flags in FLAGS.values() for flag in flags}
    for path in PYTHON:
        known |= set(re.findall(r"\"(--[a-z][a-z0-9-]*)\"", path.read_text(encoding="utf-8")))
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_a_text_exist(page):
    for line in commands(page):
        check(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_a_text_exist(page):
    for code in SPAN.findall(prose(page)):
        if code.startswith("--") and not code.startswith("--ssl-*"):
            flag = OPTION.match(code)
            assert flag and flag[0] in every_option(), f"{page.name} names {code}"


def test_commands_are_found():
    found = [line for page in PAGES for line in commands(page)]
    assert len(found) > 60
    assert any(line.startswith("glasshouse quantize pocket --format gptq") for line in found)


@pytest.mark.parametrize(
    "wrong",
    [
        "make everything",
        "glasshouse quantise pocket",
        "glasshouse quantize pocket --fromat gptq",
        "python -m engine.no_such_thing",
        "python -m engine.rounding",
        "python -m engine.core",
        "python -m engine.trace replay docs/records/nothing.jsonl",
        "python -m benchmarks.formats --part quality",
        "python no_such_client.py --wait",
        "pytest tests/no_such_folder",
    ],
)
def test_what_does_not_exist_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check(wrong)
