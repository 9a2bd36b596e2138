"""Step 4. Measure what paging wastes.

A sequence's last block is rarely full. Compute the share of slots in used blocks that hold no
token, over all steps of a record. Begin with engine/trace/replay.py: `Replay` gives the state
after any event.
"""

from __future__ import annotations

from engine.trace.events import Event


def waste(events: list[Event]) -> float:
    """Between 0 and 1: 1 − (tokens in the cache) / (slots of used blocks).

    Both are summed over the steps as they stand after each `step.planned`; tokens are those whose
    K/V the cache has then. A block that several sequences share counts once, and so do its tokens.
    """
    raise NotImplementedError
