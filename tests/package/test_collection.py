"""Folders of tests that need neither torch nor transformers are collected without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
