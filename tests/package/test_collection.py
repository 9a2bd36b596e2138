"""What holds of the tests themselves: what they import at collection, and what they leave alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import lengthy

ROOT = Path(__file__).resolve().parents[2]
LIGHT = ("browser", "client", "config", "container", "core", "docs", "property", "server", "trace")
COLLECT = """
import contextlib, importlib, sys
import pytest
sys.modules.update(torch=None, transformers=None, triton=None)
for name in sys.argv[1:]:
    with contextlib.suppress(pytest.skip.Exception):  # a client that isn't installed
        importlib.import_module(name)
"""


@pytest.mark.slow
def test_light_folders_are_collected_without_torch():
    """pytest imports each module of tests and each conftest; they must find no torch there."""
    folders = [ROOT / "tests" / name for name in LIGHT]
    files = [
        path.relative_to(ROOT).with_suffix("")
        for folder in folders
        for pattern in ("conftest.py", "test_*.py")
        for path in sorted(folder.rglob(pattern))
    ]
    names = [".".join(file.parts) for file in files]
    assert len(names) > 50
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *names], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_test_turns_coverage_off():
    """A trace function is put back: without one, nothing that this worker runs later is counted."""
    turns_off = "settrace(" + "None)"
    found = [p.name for p in (ROOT / "tests").rglob("*.py") if turns_off in p.read_text()]
    assert found == [], "set what sys.gettrace() returned before"


def test_what_is_called_lengthy_exists():
    """A test that got another name would be left out no more, or another one by mistake."""
    for name in lengthy.listed():
        path, function = name.split("::")
        assert f"def {function}(" in (ROOT / path).read_text(), name
