"""Imports go down only: server → text → core; engine_core → worker → models → layers → kernels; all
→ trace.

`trace` imports nothing of the engine, and neither it nor `core` imports torch: both are tested on
machines without.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# package → the packages of the engine that it may import, besides itself, trace, and the plain
# declarations (config, sampling_params, the version) that everything but trace may read
BELOW = {
    "trace": set(),
    "core": set(),
    "kernels": set(),
    "layers": {"kernels"},
    "models": {"layers", "kernels"},
    "worker": {"models", "layers", "kernels", "core.messages"},
    # what kind of model is it, is it there? asked before torch is imported
    "text": {"core", "models.formats", "models.named", "models.asking"},
    "server": {"text", "core", "worker", "models.hub", "models.errors", "models.fitting_options"},
    "config": set(),
    "whatif": {"core"},
    "fit": {"models.sizes", "models.errors", "models.formats"},
    "quantize": {"models"},
}
DECLARATIONS = {
    "config",
    "sampling_params",
    "structured_outputs",
    "fp8_formats",
    "rank_sizes",
    "rounding",
    "placeholders",
    "one_line",
    "child_process",
    "__version__",
}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, anywhere in it, as absolute names."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    tree = ast.parse(path.read_text(), str(path))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} if module != "engine" else {f"engine.{a.name}" for a in node.names}
    return names


def files_of(package: str) -> list[Path]:
    return sorted((ROOT / "engine" / package).rglob("*.py"))


@pytest.mark.parametrize("package", BELOW)
def test_imports_go_down_only(package):
    assert files_of(package), f"engine/{package} has no files"
    for path in files_of(package):
        for name in imported(path):
            if not name.startswith("engine."):
                continue
            module = name.removeprefix("engine.")
            top = module.split(".")[0]
            if top == package or (package != "trace" and top in DECLARATIONS | {"trace"}):
                continue
            allowed = any(f"{module}.".startswith(f"{below}.") for below in BELOW[package])
            assert allowed, f"{path.relative_to(ROOT)} imports {name}: {package} stands below it"


@pytest.mark.parametrize("package", ["trace", "core", "whatif"])
def test_no_torch_here(package):
    for path in files_of(package):
        heavy = {name.split(".")[0] for name in imported(path)} & {
            "torch",
            "transformers",
            "triton",
        }
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("package", ["trace", "core", "whatif"])
def test_every_module_loads_where_there_is_no_torch(package):
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files_of(package)]
    blocked = (
        "import sys, importlib; sys.modules.update(torch=None, transformers=None, triton=None)"
    )
    loading = f"{blocked}\nfor name in {modules!r}: importlib.import_module(name)"
    result = subprocess.run(
        [sys.executable, "-c", loading], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


def arrows(path: Path, files: set[str]) -> set[str]:
    """Return the files that a file imports, by their modules' names."""
    found = imported(path) & files
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & files
            if inner <= files:  # nothing of the package itself, only its parts
                found.discard(str(node.module))
    return found


def test_no_file_imports_itself_through_others():
    """Names for annotations count. `engine/__init__.py` names what it loads when asked for it."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "engine").rglob("*.py")
    }
    left = {name: arrows(path, set(files)) for name, path in files.items() if name != "engine"}
    while done := [name for name, below in left.items() if not below & left.keys()]:
        for name in done:
            del left[name]
    assert not left, {name: sorted(below & left.keys()) for name, below in left.items()}


def test_the_rule_would_see_an_upward_import(tmp_path, monkeypatch):
    engine = tmp_path / "engine" / "core"
    engine.mkdir(parents=True)
    (engine / "a.py").write_text(
        "def f():\n    from engine.server import app\n    from .. import text\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert imported(engine / "a.py") == {"engine.server", "engine.text"}
    with pytest.raises(AssertionError, match="core stands below it"):
        test_imports_go_down_only("core")
