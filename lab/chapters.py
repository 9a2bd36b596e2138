"""List the chapters in their order."""

from __future__ import annotations

from lab import (
    attention,
    batching,
    chunking,
    fewer_bits,
    grammars,
    graphs,
    kv_cache,
    loading,
    machine,
    paging,
    policy,
    preemption,
    prefix,
    sampling,
    speculation,
    throughput,
    tokens,
    whole,
)
from lab.chapter import Chapter

CHAPTERS: tuple[Chapter, ...] = tuple(
    module.CHAPTER
    for module in (
        machine, loading, tokens, kv_cache, paging, batching, chunking, throughput, policy,
        prefix, attention, fewer_bits, preemption, sampling, grammars, graphs, speculation, whole,
    )
)  # fmt: skip


class UnknownChapter(ValueError):
    """Report that --only names no chapter; the message lists those that exist."""


def chosen(names: list[str]) -> list[Chapter]:
    """Return the chapters of these names in the lab's order; all for none.

    Raises `UnknownChapter`.
    """
    known = [chapter.name for chapter in CHAPTERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UnknownChapter(
            f"there is no chapter {', '.join(map(repr, unknown))}; choose from {', '.join(known)}."
        )
    return [chapter for chapter in CHAPTERS if not names or chapter.name in names]
