"""How many of a matrix's cases are tried: all of them with `--full`, a part without."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

FULL = "TESTS_FULL" in os.environ
"""Set by tests/conftest.py for `--full`, before tests are imported, for processes of tests too."""


def cases(full: int) -> int:
    """Return how many of `full` cases to try in this run."""
    return full if FULL else max(3, full // 4)


def mostly(values: Sequence[Any], *always: Any) -> list[Any]:
    """Mark as `full` all values but those that every run tries."""
    assert set(always) <= set(values), "a value that is always tried is one of them"
    return [v if v in always else pytest.param(v, marks=pytest.mark.full) for v in values]


def pairs(rows: Sequence[Any], columns: Sequence[Any], every: int) -> list[Any]:
    """Return all pairs; those marked `full` leave out no row and no column from other runs.

    every: one of so many pairs is tried without `--full`, in diagonals.
    """
    assert every <= min(len(rows), len(columns)), "each row and each column has an unmarked pair"
    return [
        pytest.param(row, column, marks=[pytest.mark.full] if (i + j) % every else [])
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
    ]
