"""Step 3. Build a block pool.

A block is a number. It is used while it has owners (sequences whose table names it), and free
otherwise. A full block may have a key that says what is in it; then others find it by that key,
used or free. A free block keeps its content and its key until it is taken again. Begin with
engine/core/block_pool.py, but look there only for the terms: yours is smaller.
"""

from __future__ import annotations

from engine.core.block_pool import OutOfBlocks  # what `allocate` raises

__all__ = ["OutOfBlocks", "Pool"]


class Pool:
    def __init__(self, num_blocks: int) -> None:
        """Hold blocks 0 … num_blocks − 1, all free, to be taken in this order."""
        raise NotImplementedError

    def num_free(self) -> int:
        raise NotImplementedError

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks from the front of the free queue, with one owner each.

        They lose their keys. Raises OutOfBlocks, without any change, if fewer are free.
        """
        raise NotImplementedError

    def share(self, block: int) -> None:
        """Add an owner. A free block leaves the free queue."""
        raise NotImplementedError

    def free(self, blocks: list[int]) -> None:
        """Remove an owner from each. A block without owners is free: it joins the queue at the
        back if it has a key, at the front if it has none."""
        raise NotImplementedError

    def cache(self, block: int, key: str) -> None:
        """Let others find this used block by the key; if the key is known already, do nothing."""
        raise NotImplementedError

    def find(self, key: str) -> int | None:
        """Return the block that has this key, used or free; None if none has."""
        raise NotImplementedError
