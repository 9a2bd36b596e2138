"""Know which tests `make test-fast` and `make coverage` leave out: they were measured as lengthy.

A test function stands in lengthy.txt when one of its cases took half a second or more, or all of
them two, in `make lengthy-tests`. The mark `slow` is set by hand.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

ONE_CASE_S, ALL_CASES_S = 0.5, 2.0
LIST = Path(__file__).with_name("lengthy.txt")


def function(nodeid: str) -> str:
    """The name of a test without its case."""
    return nodeid.split("[")[0]


def listed() -> set[str]:
    return set(LIST.read_text().split())


class Durations:
    """Adds up what each test takes, and writes the list at the end; a plugin of pytest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        cases: dict[str, list[float]] = defaultdict(list)
        for nodeid, seconds in self.seconds.items():
            cases[function(nodeid)].append(seconds)
        lengthy = {
            name for name, s in cases.items() if max(s) >= ONE_CASE_S or sum(s) >= ALL_CASES_S
        }
        kept = listed() - set(cases)  # where a part of the tests was run
        LIST.write_text("".join(f"{name}\n" for name in sorted(lengthy | kept)))
