"""Step 8. Write an eviction policy.

The engine evicts the block that was freed longest ago. A system prompt that everybody uses deserves
to stay longer than a question that was asked once: keep what was hit often. Begin with
engine/core/block_pool.py. Replay knows only the engine's own order, so it will contradict your
record: explain why.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.block_pool import BlockPool


class Pool(BlockPool):
    def share(self, blocks: Iterable[int]) -> None:
        """Add an owner to each: somebody hits these blocks."""
        super().share(blocks)

    def allocate(self, count: int) -> tuple[list[int], list[tuple[int, bytes]]]:
        """Take from the front of `self.free_queue`."""
        return super().allocate(count)
