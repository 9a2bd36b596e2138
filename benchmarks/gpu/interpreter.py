"""Check whether Triton's interpreter works here: a dry run and the kernels' tests need it."""

from __future__ import annotations

from importlib.metadata import version


def why_not() -> str:
    """Say why the interpreter can't run with what is installed; "" if it can.

    Compiled kernels are not affected: only the interpreter takes arrays of one element as loop
    bounds.
    """
    triton, numpy = (version(package) for package in ("triton", "numpy"))
    if _numbers(triton) < (3, 7) and _numbers(numpy) >= (2, 4):
        return (
            f"Triton {triton}'s interpreter needs NumPy before 2.4, here is {numpy}; kernels that"
            " are compiled for a GPU are not concerned"
        )
    return ""


def _numbers(version_text: str) -> tuple[int, int]:
    """Return (3, 7) for "3.7.1"."""
    major, minor = version_text.split(".")[:2]
    return int(major), int(minor)
