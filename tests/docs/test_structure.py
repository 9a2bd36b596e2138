"""The map of the packages names all of them, with the imports that the rule allows."""

from __future__ import annotations

import re

import pytest

from docs.scripts.server import ROOT
from tests.trace.test_import_rules import BELOW

PAGE = (ROOT / "docs" / "STRUCTURE.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(engine[\w/]*)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)
ROWS = {package: cells for package, *cells in ROW.findall(PAGE)}
PACKAGES = sorted(
    path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "engine").rglob("__init__.py")
)


def test_every_package_has_its_row_and_no_other():
    assert sorted(ROWS) == PACKAGES


def test_every_row_says_what_the_package_does_and_who_calls_it():
    for package, (does, _may_import, called_by) in ROWS.items():
        assert does.strip() and called_by.strip(), package


@pytest.mark.parametrize("package", [name for name in PACKAGES if name.count("/") == 1])
def test_the_imports_are_those_of_the_rule(package):
    name = package.removeprefix("engine/")
    assert name in BELOW, f"{package} has no rule in tests/trace/test_import_rules.py"
    assert set(re.findall(r"`([\w.]+)`", ROWS[package][1])) == BELOW[name]


def test_every_file_that_is_named_exists():
    named = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert len(named) > 40
    for name in named:
        assert (ROOT / "engine" / name).is_file() or (ROOT / name).is_file(), name
    for folder in re.findall(r"`([\w/]+)/`", PAGE):
        assert (ROOT / folder).is_dir(), folder
