"""What holds for all tests: `--full`, `lengthy`, and what a worker of xdist runs and takes."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.support import lengthy


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run what is marked `full`, too: every case of a matrix"
    )
    parser.addoption(
        "--write-lengthy",
        action="store_true",
        help="write which tests are: tests/support/lengthy.txt",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full"):
        os.environ["TESTS_FULL"] = "1"  # tests/support/cases.py, also in processes of tests
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        # its share of the cores, before torch is imported: threads of several workers would wait
        # for each other
        share = max(1, (os.cpu_count() or 1) // int(workers))
        os.environ.setdefault("OMP_NUM_THREADS", str(share))
    if config.getoption("--write-lengthy") and not os.environ.get("PYTEST_XDIST_WORKER"):
        config.pluginmanager.register(lengthy.Durations())


ONE_BY_ONE = ("tests/kernels/triton/test_in_the_interpreter.py",)
"""A file whose tests share nothing, and are long: any worker may run any of them."""

FIRST = (*ONE_BY_ONE, "tests/kernels/triton/", "tests/browser/", "tests/docs/", "tests/client/")
"""What is long comes first, so that no worker is left with it alone at the end."""


def place(nodeid: str) -> int:
    """Return the place of a test among those that come first, or the one behind them."""
    return next((i for i, start in enumerate(FIRST) if nodeid.startswith(start)), len(FIRST))


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is lengthy, leave `full` out unless it is asked for, put long files first."""
    listed = lengthy.listed()
    for item in items:
        if lengthy.function(item.nodeid) in listed:
            item.add_marker(pytest.mark.lengthy)
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        items.sort(key=lambda item: place(item.nodeid))  # is stable


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Have a worker more than there are cores: tests wait for servers and browsers that they start.

    With two workers on two cores, the cores did nothing for a quarter of the time.
    """
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker whole files: tests of a file share its servers and models."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(ONE_BY_ONE) else nodeid.split("::")[0]

    config.option.loadscopereorder = False  # the order is ours
    return ByFile(config, log)
