"""Check step 3: a block pool, beside the engine's own."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

from course.exercise import Wrong
from engine.core.block_pool import BlockPool, OutOfBlocks


class Both:
    """Do each operation in the solution's pool and in the engine's, and compare the two."""

    def __init__(self, module: ModuleType, num_blocks: int) -> None:
        self.yours: Any = module.Pool(num_blocks)
        self.ours = BlockPool(num_blocks)
        self.done: list[str] = [f"pool = Pool({num_blocks})"]
        self.keys: set[str] = set()
        self.compare()

    def allocate(self, count: int) -> list[int] | None:
        self.done.append(f"allocate({count})")
        expected: list[int] | None
        try:
            expected = self.ours.allocate(count)[0]
        except OutOfBlocks:
            expected = None
        try:
            answer = list(self.yours.allocate(count))
        except OutOfBlocks:
            answer = None
        if answer != expected:
            told = ["raised OutOfBlocks" if x is None else f"gave {x}" for x in (answer, expected)]
            raise Wrong(f"{self.told()}: it {told[0]}; right would be that it {told[1]}")
        self.compare()
        return expected

    def share(self, block: int) -> None:
        self.done.append(f"share({block})")
        self.ours.share([block])
        self.yours.share(block)
        self.compare()

    def free(self, blocks: list[int]) -> None:
        self.done.append(f"free({blocks})")
        self.ours.free(blocks)
        self.yours.free(blocks)
        self.compare()

    def cache(self, block: int, key: str) -> None:
        self.done.append(f"cache({block}, {key!r})")
        self.ours.cache(block, key.encode())
        self.yours.cache(block, key)
        self.keys.add(key)
        self.compare()

    def compare(self) -> None:
        if (answer := self.yours.num_free()) != self.ours.num_free:
            raise Wrong(
                f"{self.told()}: num_free() says {answer}, but {self.ours.num_free} are free"
            )
        for key in sorted(self.keys):
            answer, expected = self.yours.find(key), self.ours.cached.get(key.encode())
            if answer != expected:
                raise Wrong(f"{self.told()}: find({key!r}) says {answer}, not {expected}")

    def told(self) -> str:
        """Name what was done, the last operations of it."""
        shown = self.done[-6:]
        return f"after {'… ' if len(shown) < len(self.done) else ''}{', '.join(shown)}"


def allocation(module: ModuleType) -> None:
    """Take blocks from the front; without enough of them change nothing."""
    both = Both(module, 4)
    both.allocate(2)
    both.allocate(3)  # one too many
    both.allocate(2)


def owners(module: ModuleType) -> None:
    """Free a block when its last owner has gone; take blocks without a key first."""
    both = Both(module, 4)
    both.allocate(3)
    both.share(1)
    both.free([1])
    both.free([2, 1])
    both.allocate(2)


def content(module: ModuleType) -> None:
    """Find a block by its key, used or free, until it is taken again."""
    both = Both(module, 3)
    both.allocate(2)
    both.cache(0, "a")
    both.cache(1, "a")  # the key is known already
    both.cache(1, "b")
    both.free([1, 0])
    both.share(1)
    both.allocate(1)
    both.allocate(1)  # the block of "a" is taken
    both.cache(0, "c")


def eviction(module: ModuleType) -> None:
    """Take first what was freed longest ago."""
    both = Both(module, 4)
    blocks = both.allocate(4) or []
    for block in blocks:
        both.cache(block, f"key {block}")
    for block in (2, 0, 3, 1):
        both.free([block])
    both.allocate(1)
    both.share(0)
    both.free([0])
    both.allocate(3)


def anything(module: ModuleType) -> None:
    """Hold in five hundred random operations."""
    draw = random.Random(1)
    both, owned = Both(module, 8), []
    for number in range(500):
        unknown = [block for block in owned if both.ours.hashes[block] is None]
        found = [both.ours.cached[key.encode()] for key in both.keys if key.encode() in
                 both.ours.cached]  # fmt: skip
        kind = draw.choice(("allocate", "free", "cache", "share"))
        if kind == "allocate":
            owned += both.allocate(draw.randint(1, 3)) or []
        elif kind == "free" and owned:
            both.free([owned.pop(draw.randrange(len(owned)))])
        elif kind == "cache" and unknown:
            both.cache(draw.choice(unknown), f"key {number % 20}")
        elif kind == "share" and found:
            owned.append(draw.choice(sorted(found)))
            both.share(owned[-1])


PARTS = (allocation, owners, content, eviction, anything)
