"""One solution of step 3."""

from __future__ import annotations

from collections import OrderedDict

from engine.core.block_pool import OutOfBlocks


class Pool:
    def __init__(self, num_blocks: int) -> None:
        self.queue = OrderedDict.fromkeys(range(num_blocks))
        self.owners = [0] * num_blocks
        self.keys: dict[int, str] = {}
        self.blocks: dict[str, int] = {}

    def num_free(self) -> int:
        return len(self.queue)

    def allocate(self, count: int) -> list[int]:
        if count > len(self.queue):
            raise OutOfBlocks(f"{count} wanted, {len(self.queue)} free")
        taken = [self.queue.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.owners[block] = 1
            if block in self.keys:
                del self.blocks[self.keys.pop(block)]
        return taken

    def share(self, block: int) -> None:
        self.owners[block] += 1
        self.queue.pop(block, None)

    def free(self, blocks: list[int]) -> None:
        for block in blocks:
            self.owners[block] -= 1
            if self.owners[block] == 0:
                self.queue[block] = None
                if block not in self.keys:
                    self.queue.move_to_end(block, last=False)

    def cache(self, block: int, key: str) -> None:
        if key not in self.blocks:
            self.keys[block] = key
            self.blocks[key] = block

    def find(self, key: str) -> int | None:
        return self.blocks.get(key)
