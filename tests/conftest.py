"""What holds for all tests: `--full`, and which of them share a process."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run what is marked `full`, too: every case of a matrix"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full"):
        os.environ["TESTS_FULL"] = "1"  # tests/support/cases.py, also in processes of tests


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave `full` tests out unless they are asked for, and keep a file's tests together.

    Tests of a file share its servers and models, so they run in one worker (`--dist loadgroup`).
    Tests with an `xdist_group` of their own are long: they come first, so that none is left to run
    alone at the end.
    """
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)  # is stable
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
