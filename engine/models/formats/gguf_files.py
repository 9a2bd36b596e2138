"""Find the GGUF files of a model. Imports no numpy: every start asks, also for other models."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from engine.models.errors import ModelError
from engine.models.formats.recognise import WEIGHTS

MAGIC = b"GGUF"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def gguf_files(path: Path) -> list[Path]:
    """Return the file at a path, or the only one in that folder, with all its parts."""
    try:
        if path.is_dir():
            names = {entry.name for entry in path.iterdir() if entry.is_file()}
            found = sorted(name for name in names if name.lower().endswith(".gguf"))
            if not found or any(fnmatch(name, kind) for name in names for kind in WEIGHTS):
                return []
            first = [name for name in found if _number(name) == 1]
            if len(first) > 1:
                listed = ", ".join(first[:4]) + (", …" if len(first) > 4 else "")
                raise ModelError(f"{path} has several GGUF files ({listed}); name one of them.")
            return _parts(path / (first or found)[0])
        if path.is_file() and _begins_as_gguf(path):
            return _parts(path)
    except OSError:
        pass  # what can't be read is reported by those who need it
    return []


def _begins_as_gguf(path: Path) -> bool:
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def _number(name: str) -> int:
    """Return which part of a split file has this name; 1 for a whole one."""
    part = _PART.search(name)
    return int(part[1]) if part else 1


def _parts(path: Path) -> list[Path]:
    part = _PART.search(path.name)
    if part is None:
        return [path.resolve()]
    stem, count = path.name[: part.start()], int(part[2])
    if not 1 <= count <= 1000:
        raise ModelError(f"{path} says that it is one of {count} parts.")
    parts = [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]
    missing = [one.name for one in parts if not one.is_file()]
    if missing:
        raise ModelError(f"{path} is one of {count} parts, and {missing[0]} is not beside it.")
    return [one.resolve() for one in parts]
