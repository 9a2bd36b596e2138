"""Load the chapters in their order: a file each, with the chapter's name."""

from __future__ import annotations

from importlib import import_module

from lab.chapter import Chapter
from lab.chapter_names import NAMES

CHAPTERS: tuple[Chapter, ...] = tuple(
    import_module(f"lab.{name.replace('-', '_')}").CHAPTER for name in NAMES
)
