"""A list of heights that lacks one doesn't compile: rows would be left out, or made up."""

from __future__ import annotations

import platform
import subprocess

import pytest

from engine.kernels.cpu import build

HEADER = "quantized_many.h"
FIRST, OTHER, KEPT = "FirstHeights", "OtherHeights", "KeptHeights"
LACKING = [
    ("avx512", f"8, 7, 6, 5> {FIRST}", f"8, 7, 6> {FIRST}"),
    ("avx512", f"12, 10, 8, 7, 6, 5> {FIRST}", f"12, 8, 7, 6, 5> {FIRST}"),
    ("avx512", f"9, 8, 7, 6, 5, 4> {OTHER}", f"9, 8, 6, 5, 4> {OTHER}"),
    ("avx512_bf16", f"7, 6, 5, 4> {KEPT}", f"6, 5, 4> {KEPT}"),
    ("avx2", f"6, 5, 4> {FIRST}", f"6, 5> {FIRST}"),
    ("avx2", f"6, 5, 4, 3> {OTHER}", f"6, 5, 4> {OTHER}"),
    ("avx2", "FIRST_ROWS = REGISTERS * 3 / 8", "FIRST_ROWS = REGISTERS / 2"),
]


def compiler() -> str:
    try:
        return build._compiler()[0]
    except build.BuildError:
        return ""


def errors(variant: str, folder) -> list[str]:
    """The compiler's errors in the products, with the header that lies in the folder."""
    command = [
        *(compiler(), *build._flags(variant), "-fsyntax-only", "-x", "c++", "-"),
        *("-iquote", str(folder), "-iquote", str(build.FOLDER)),
    ]
    source = (build.FOLDER / "linear_quantized.cpp").read_text()
    result = subprocess.run(
        command, input=source, capture_output=True, text=True, check=False, cwd=folder
    )
    return [line for line in result.stderr.splitlines() if "error" in line]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86's"),
    pytest.mark.skipif(not compiler(), reason="no C++ compiler here"),
]


@pytest.mark.parametrize(("variant", "whole", "lacking"), LACKING)
def test_a_list_that_lacks_a_height_does_not_compile(variant, whole, lacking, tmp_path):
    text = (build.FOLDER / HEADER).read_text()
    assert text.count(whole) == 1
    (tmp_path / HEADER).write_text(text)
    assert errors(variant, tmp_path) == []
    (tmp_path / HEADER).write_text(text.replace(whole, lacking))
    found = errors(variant, tmp_path)
    assert found
    assert all("a pass has a height that its list lacks" in error for error in found)
