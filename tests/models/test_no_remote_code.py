"""No code of a checkpoint is ever run, or asked about: every call of transformers says so."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("engine", "lab", "benchmarks", "pocket")
LOADERS = {"from_pretrained", "from_config"}


def calls(tree: ast.AST) -> list[tuple[int, bool]]:
    """(line, whether it says so) of each call that could load code."""
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name = ast.unparse(node.func.value)
        if node.func.attr in LOADERS and name.startswith("Auto"):
            says = {k.arg: ast.unparse(k.value) for k in node.keywords}
            found.append((node.lineno, says.get("trust_remote_code") == "False"))
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_call_refuses_code(folder):
    number = 0
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, refuses in calls(ast.parse(path.read_text())):
            assert refuses, f"{path.relative_to(ROOT)}:{line} lacks trust_remote_code=False"
            number += 1
    assert number


def test_the_rule_would_see_one():
    assert calls(ast.parse("AutoConfig.from_pretrained(x)")) == [(1, False)]
    assert calls(ast.parse("AutoModel.from_config(x, trust_remote_code=True)")) == [(1, False)]
