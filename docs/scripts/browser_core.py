"""Put the core into the site, to run in a browser: `python -m docs.scripts.browser_core FOLDER`.

Python comes as npm's `pyodide`, msgspec as its wheel for it; both are fetched when the site is
built, and lie beside the page: a visitor's browser asks no other server.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from docs.scripts.server import ROOT
from engine.trace.command import run_command
from engine.trace.html_page import room_with

PYODIDE, MSGSPEC = "314.0.7", "0.23.0"  # they belong together: the wheel is built for this Python
FILES = (
    "pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json",
)  # fmt: skip
SOURCES = ("core", "trace", "whatif", "config")
SLIDERS = (
    ("requests", 1, 120, 40), ("per_second", 5, 400, 200), ("prompt", 8, 400, 60),
    ("output", 1, 200, 40), ("shared", 0, 200, 32), ("blocks", 8, 200, 30), ("seats", 1, 32, 6),
    ("budget", 8, 512, 128), ("seed", 1, 20, 1),
)  # fmt: skip
LABELS = {
    "per_second": "arrivals a second", "prompt": "prompt tokens", "output": "output tokens",
    "shared": "tokens that all prompts begin with", "blocks": "blocks of 16 tokens",
    "budget": "tokens of a step",
}  # fmt: skip


def build(folder: Path) -> list[Path]:
    """Write the page and all that it needs; return the files.

    Raises RuntimeError if npm or pip can't fetch what is needed.
    """
    (folder / "pyodide").mkdir(parents=True, exist_ok=True)
    fetched = [*_fetch_pyodide(folder / "pyodide"), _fetch_msgspec(folder / "msgspec.whl")]
    return [*fetched, *write_own(folder)]


def write_own(folder: Path) -> list[Path]:
    """Write what is ours: the page, its scripts, the empty room, the engine's sources."""
    folder.mkdir(parents=True, exist_ok=True)
    page = (ROOT / "docs" / "site" / "core.html").read_text(encoding="utf-8")
    html = folder / "core.html"
    html.write_text(page.replace("SLIDERS", "\n".join(map(_slider, SLIDERS))), encoding="utf-8")
    written = [html]
    for name in ("core.js", "core-worker.js"):
        (folder / name).write_bytes((ROOT / "docs" / "site" / name).read_bytes())
        written.append(folder / name)
    (folder / "room.html").write_bytes(room_with([], "in your browser"))
    sources = folder / "engine.zip"
    with zipfile.ZipFile(sources, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _sources():
            archive.write(path, path.relative_to(ROOT))
    return [*written, folder / "room.html", sources]


def _sources() -> list[Path]:
    engine = ROOT / "engine"
    files = [path for part in SOURCES for path in sorted((engine / part).rglob("*.py"))]
    return [*sorted(engine.glob("*.py")), *files]


def _slider(slider: tuple[str, int, int, int]) -> str:
    name, low, high, value = slider
    return (
        f'<label>{LABELS.get(name, name)} <input type="range" name="{name}" min="{low}"'
        f' max="{high}" value="{value}"><output>{value}</output></label>'
    )


def _fetch_pyodide(folder: Path) -> list[Path]:
    with tempfile.TemporaryDirectory() as place:
        _run(["npm", "pack", f"pyodide@{PYODIDE}", "--silent"], Path(place))
        with tarfile.open(next(Path(place).glob("*.tgz"))) as archive:
            for name in (*FILES, "LICENSE"):
                try:
                    member = archive.extractfile(f"package/{name}")
                except KeyError:
                    continue
                if member is not None:
                    (folder / name).write_bytes(member.read())
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise RuntimeError(f"npm's pyodide {PYODIDE} lacks {missing}")
    return [folder / name for name in FILES]


def _fetch_msgspec(target: Path) -> Path:
    with tempfile.TemporaryDirectory() as place:
        _run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", place,
             "--only-binary=:all:", "--platform", "pyemscripten_2026_0_wasm32",
             "--python-version", "3.14", "--implementation", "cp", "--abi", "cp314",
             f"msgspec=={MSGSPEC}"],
            Path(place),
        )  # fmt: skip
        target.write_bytes(next(Path(place).glob("*.whl")).read_bytes())
    return target


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{command[0]} can't be run: {error}") from None
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")


def main() -> int:
    """Build into the folder that the command names."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site/core")
    try:
        files = build(folder)
    except RuntimeError as problem:
        print(f"the site has no core to run: {problem}", file=sys.stderr)
        return 1
    print(f"{folder}: {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    run_command(main)
