"""One solution of step 8: at each allocation, blocks that were hit move to the back."""

from __future__ import annotations

from collections.abc import Iterable

from engine.core.block_pool import BlockPool


class Pool(BlockPool):
    def __init__(self, num_blocks: int):
        super().__init__(num_blocks)
        self.hits = [0] * num_blocks

    def share(self, blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        for block in blocks:
            self.hits[block] += 1
        super().share(blocks)

    def allocate(self, count: int) -> tuple[list[int], list[tuple[int, bytes]]]:
        for block in sorted(self.free_queue, key=lambda b: self.hits[b]):
            if self.hashes[block] is not None:
                self.free_queue.move_to_end(block)
        blocks, evicted = super().allocate(count)
        for block, _hash in evicted:
            self.hits[block] = 0
        return blocks, evicted
