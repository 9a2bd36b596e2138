"""Choose where built libraries are kept: in the user's cache, else in a folder of one's own.

A home that can't be written is usual in containers. Without this every start would compile for up
to two minutes. What lies in the system's folder for temporary files is loaded as code, so it must
be this user's alone, from the folder on.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from engine.config import cache_folder


class BuildFolder(NamedTuple):
    """Hold a folder, and why it isn't the cache."""

    path: Path
    reason: str  # "": it is


def folder_to_build_in() -> BuildFolder:
    """Return the folder to build in: the cache, if it or no other can be written."""
    return _chosen(cache_folder(), tempfile.gettempdir())


def place_of(name: str) -> Path:
    """Return where a file is kept, or would be: what the cache has is used if it can't be
    written, too."""
    cached = cache_folder() / name
    return cached if os.path.exists(cached) else folder_to_build_in().path / name


def said_of(name: str) -> str:
    """Say that a file isn't kept in the cache, why, and what to do; "" if it is."""
    cache, (path, reason) = cache_folder(), folder_to_build_in()
    if not reason or os.path.exists(cache / name):
        return ""
    outcome = (
        f"they are kept in {path}, as long as the system keeps it"
        if path != cache
        else "each start compiles them, for up to some minutes"
    )
    return (
        f"kernels can't be kept in {cache} ({reason}): {outcome}. Set XDG_CACHE_HOME to a folder"
        " that can be written."
    )


@lru_cache(maxsize=4)
def _chosen(cache: Path, temporary: str) -> BuildFolder:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return BuildFolder(cache, "")
    except OSError as error:
        reason = error.strerror or str(error)
    return BuildFolder(_private(Path(temporary)) or cache, reason)


def _private(temporary: Path) -> Path | None:
    """Return this user's own folder under the one for temporary files; None if it isn't safe."""
    if not hasattr(os, "getuid"):
        return None
    folder = temporary / f"glasshouse-{os.getuid()}"
    try:
        above = os.stat(temporary)
        shared = above.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not above.st_mode & stat.S_ISVTX
        if shared or above.st_uid not in (0, os.getuid()):
            return None  # others, or its owner, could put a folder of theirs in its place
        os.makedirs(folder, mode=0o700, exist_ok=True)
        found = os.lstat(folder)  # not what a link leads to
    except OSError:
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if own and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) else None
