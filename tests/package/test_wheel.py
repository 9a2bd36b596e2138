"""What the wheel holds, and what it says of itself; `.ci/package` does the main job with it."""

from __future__ import annotations

import argparse
import ast
import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import engine
from glasshouse.command import CLASS_FLAGS, PROGRAMS, run
from tests.package.lowest import lowest

ROOT = Path(__file__).resolve().parents[2]
OLD_PYTHON = "import sys; sys.version_info = (3, 10, 13); sys.version = '3.10.13 (main)'; "


def tracked(*folders: str) -> list[str]:
    """Every file that git has, or would take, below these folders."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in tracked(".", ":!tests", ":!benchmarks/results"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).hardlink_to(ROOT / name)
    build = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("glasshouse-*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_it_has_every_file_of_the_engine_and_the_lab(wheel):
    missing = set(tracked("engine", "lab", "glasshouse", "pocket/model")) - set(wheel.namelist())
    assert not missing


def test_it_has_the_guides_and_not_what_trained_the_model(wheel):
    names = wheel.namelist()
    for page in tracked(":(glob)docs/*.md"):
        assert f"engine/server/web/guide/{Path(page).name}" in names
    assert [n for n in names if n.startswith("pocket/") and n.endswith(".py")] == [
        "pocket/__init__.py"
    ]
    tops = {name.split("/")[0] for name in names}
    assert tops == {
        *("benchmarks", "engine", "glasshouse", "lab", "pocket", "test_client.py"),
        f"glasshouse-{engine.__version__}.dist-info",
    }


def test_what_it_says_of_itself(wheel):
    info = f"glasshouse-{engine.__version__}.dist-info"
    about = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert about["Version"] == engine.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    urls = [url.split(",")[0] for url in about.get_all("Project-URL")]
    assert urls == ["Homepage", "Documentation", "Changelog", "Issues"]
    assert "glasshouse = glasshouse.command:main" in wheel.read(f"{info}/entry_points.txt").decode()


def test_every_program_of_the_command_has_a_help_of_its_own(capsys):
    for name in PROGRAMS:
        with pytest.raises(SystemExit) as ended:
            run([name, "--help"])
        assert ended.value.code == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: glasshouse {name} ")
        assert (" ".join(CLASS_FLAGS) in out) == (name == "class")


TRACE = ("annotate", "replay", "page", "perfetto", "diff", "life", "why")


@pytest.mark.parametrize("name", [*PROGRAMS, *(f"trace {word}" for word in TRACE)])
def test_every_option_says_what_it_does(name, monkeypatch):
    silent = []

    def look(parser, file=None):
        if name == "trace":
            assert tuple(parser._actions[-1].choices) == TRACE
        silent.extend(
            action.dest
            for action in parser._actions
            if not action.help and action.dest != argparse.SUPPRESS
        )

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", look)
    with pytest.raises(SystemExit):
        run([*name.split(), "--help"])
    assert not silent


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["--help"], 0), (["quantise"], 2)])
def test_without_a_program_the_command_says_which_there_are(argv, code, capsys):
    assert run(argv) == code
    out, err = capsys.readouterr()
    assert all(name in out + err for name in PROGRAMS)
    assert not err or err.count("\n") == 1


def test_the_version_stands_in_one_place():
    assert engine.__version__ not in (ROOT / "pyproject.toml").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == engine.__version__


def test_every_dependency_has_a_lower_bound_that_can_be_installed():
    assert all(re.fullmatch(r"[\w-]+==[\d.]+(;.*)?", line) for line in lowest())


def test_every_import_of_the_package_is_declared(wheel):
    """Each imported package is declared in pyproject.toml, not left to come with another one."""
    about = email.message_from_bytes(
        wheel.read(f"glasshouse-{engine.__version__}.dist-info/METADATA")
    )
    declared = {
        re.split(r"[<>=;\s\[]", line)[0].lower().replace("-", "_")
        for line in about.get_all("Requires-Dist")
    }
    imported = set()
    for name in wheel.namelist():
        for node in ast.walk(ast.parse(wheel.read(name))) if name.endswith(".py") else ():
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    own = {name.split("/")[0].removesuffix(".py") for name in wheel.namelist()}
    others = imported - own - set(sys.stdlib_module_names)
    optional = {"triton", "opentelemetry"}
    called = {
        "yaml": "pyyaml",
        "markdown_it": "markdown_it_py",
        "pydantic_core": "pydantic",  # each version of which requires one version of it
    }  # where the package has another name than its module
    assert {n for n in others if called.get(n, n).lower() not in declared} <= optional


def test_an_older_python_is_refused_in_one_line():
    code = f"{OLD_PYTHON}sys.path.insert(0, {str(ROOT)!r}); import engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "needs Python 3.11 or later; this is 3.10.13" in done.stderr


def test_make_refuses_an_older_python_in_one_line(tmp_path):
    fake = tmp_path / "python3.10"
    code = f'exec {sys.executable} -c "{OLD_PYTHON}exec(sys.argv[1])" "$2"'
    fake.write_text(f"#!/bin/sh\n{code}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"PYTHON={fake}", f"VENV={tmp_path}/venv"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    assert done.stderr.count("\n") == 1
    assert f"needs Python 3.11 or later; {fake} is 3.10.13" in done.stderr
