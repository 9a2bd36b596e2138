"""What the files of the engine are called: one name, one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from docs.scripts.server import ROOT

ENGINE = ROOT / "engine"
EVERYWHERE = {"__init__.py", "__main__.py", "errors.py", "command.py"}
"""What any package may have: its exceptions, its part of the console command."""
FAMILIES = ENGINE / "trace" / "sentences"
"""A family of events may be called as what it tells of."""
WITH_KERNELS = {ENGINE / "layers", ENGINE / "kernels", ENGINE / "kernels" / "triton"}

SAME_CLASS = {
    "Tape",  # what a launch needs of a tape, and the tape
    "Tile",  # of a matrix: each kernel cuts its own
}


def files() -> list[Path]:
    return sorted(ENGINE.rglob("*.py"))


def test_no_two_files_have_one_name():
    """A layer's file and that of its kernels may: they are one thing in two rooms."""
    places = defaultdict(list)
    for path in files():
        if path.parent != FAMILIES:
            places[path.name].append(path.parent)
    for name, folders in places.items():
        if name not in EVERYWHERE and not (len(folders) == 2 and WITH_KERNELS.issuperset(folders)):
            assert len(folders) == 1, f"{name} is in {[str(f.relative_to(ROOT)) for f in folders]}"


def test_no_two_classes_have_one_name():
    """The signature of a kernel may have the name of the layer whose kernel it is."""
    places = defaultdict(list)
    for path in files():
        if path == ENGINE / "kernels" / "signatures.py":
            continue
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert twice.keys() == SAME_CLASS, twice


def test_division_upwards_is_written_once():
    """`ceil_div` says what it is; `KVManager.blocks_for` runs for every row of every step."""
    written = {path.name for path in files() if "-(-" in path.read_text()}
    assert written == {"rounding.py", "kv_manager.py"}, "use engine.rounding.ceil_div"
