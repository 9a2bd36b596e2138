"""Keep free blocks in the order in which they are taken: for the pool, and for its replay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator


class FreeQueue:
    """Hold blocks in order; each operation is O(1), but for the removal of one never taken.

    It begins with the blocks 0, 1, …. Those that were never taken are only counted: a small model's
    pool has tens of thousands, which would take 150 bytes each.
    """

    def __init__(self, num_blocks: int = 0):
        self._front: dict[int, None] = {}  # joined at the front: the last one is the first
        self._fresh = range(num_blocks)  # never taken; behind those of the front
        self._back: OrderedDict[int, None] = OrderedDict()  # joined at the back

    @classmethod
    def of(cls, blocks: Iterable[int]) -> FreeQueue:
        """Return a queue of these blocks, the first one first."""
        queue = cls()
        queue._back = OrderedDict.fromkeys(blocks)
        return queue

    def copy(self) -> FreeQueue:
        other = FreeQueue()
        other._front, other._fresh, other._back = self._front.copy(), self._fresh, self._back.copy()
        return other

    def __len__(self) -> int:
        return len(self._front) + len(self._fresh) + len(self._back)

    def __iter__(self) -> Iterator[int]:
        yield from reversed(self._front)
        yield from self._fresh
        yield from self._back

    def __contains__(self, block: int) -> bool:
        return block in self._back or block in self._fresh or block in self._front

    def append(self, block: int) -> None:
        """Let a block that isn't in the queue join at its back."""
        self._back[block] = None

    def append_left(self, block: int) -> None:
        """Let a block that isn't in the queue join at its front."""
        self._front[block] = None

    def pop_left(self) -> int:
        """Take the first block. Raises KeyError if there is none."""
        if self._front:
            return self._front.popitem()[0]
        if self._fresh:
            block, self._fresh = self._fresh[0], self._fresh[1:]
            return block
        return self._back.popitem(last=False)[0]

    def remove(self, block: int) -> None:
        """Take a block from wherever it is. Raises KeyError if it isn't in the queue."""
        if block in self._fresh:  # only the pool of another engine does that; then none is left
            self._back = OrderedDict.fromkeys(self)
            self._front, self._fresh = {}, range(0)
        if block in self._front:
            del self._front[block]
        else:
            del self._back[block]

    def move_to_end(self, block: int) -> None:
        """Move a block to the back. Raises KeyError if it isn't in the queue."""
        self.remove(block)
        self.append(block)
