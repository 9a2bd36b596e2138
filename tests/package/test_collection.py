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
import sys, pytest
sys.modules.update(torch=None, transformers=None, triton=None)
sys.exit(pytest.main(["-qq", "--collect-only", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_light_folders_are_collected_without_torch():
    folders = [str(ROOT / "tests" / name) for name in LIGHT]
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, *folders], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]


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
