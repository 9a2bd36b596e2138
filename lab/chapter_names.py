"""Name the chapters in their order: what `--help` and `--only` need, without loading them."""

from __future__ import annotations

NAMES = (
    "machine",
    "loading",
    "tokens",
    "kv-cache",
    "paging",
    "batching",
    "chunking",
    "throughput",
    "policy",
    "prefix",
    "attention",
    "fewer-bits",
    "preemption",
    "sampling",
    "grammars",
    "graphs",
    "speculation",
    "whole",
)


class UnknownChapter(ValueError):
    """Report that --only names no chapter; the message lists those that exist."""


def chosen(names: list[str]) -> list[str]:
    """Return these names in the lab's order; all for none. Raises `UnknownChapter`."""
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UnknownChapter(
            f"there is no chapter {', '.join(map(repr, unknown))}; choose from {', '.join(NAMES)}."
        )
    return [name for name in NAMES if not names or name in names]
