"""The variant for 64-bit ARM, compiled here and run by an emulator: right, and the same bits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from engine.kernels.cpu import build

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing),
        reason=f"no {' and no '.join(missing)} here (Debian: g++-aarch64-linux-gnu, qemu-user)",
    ),
]
DRIVER = Path(__file__).with_name("products_on_arm.cpp")


def compiler(*arguments: str) -> None:
    flags = [flag for flag in build.FLAGS if flag not in ("-O3", "-shared")]
    command = [COMPILER, "-O2", *flags, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_products_are_right_and_the_same_in_any_company(tmp_path):
    sources = [build.FOLDER / "linear.cpp", build.FOLDER / "linear_panels.cpp", DRIVER]
    compiler("-static", "-o", str(tmp_path / "products"), *map(str, sources))
    run = [EMULATOR, str(tmp_path / "products")]
    result = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.endswith("88 products checked, 0 wrong\n"), result.stdout


@pytest.mark.parametrize("source", build.SOURCES)
def test_every_source_compiles(source, tmp_path):
    compiler("-fsyntax-only", str(build.FOLDER / source))
