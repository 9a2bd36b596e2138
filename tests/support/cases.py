"""How many random cases a test tries: all of them with `--full`, a quarter without."""

from __future__ import annotations

import os

FULL = "TESTS_FULL" in os.environ
"""Set by tests/conftest.py for `--full`, before tests are imported, for processes of tests too."""


def cases(full: int) -> int:
    """Return how many of `full` cases to try in this run."""
    return full if FULL else max(3, full // 4)
