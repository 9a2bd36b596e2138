"""Keep track of KV blocks: who uses each, and which contents can still be found.

A block is a number: page `b` of every layer's K and V tensors. A block is *used* while some block
table names it (`references[b] > 0`) and *free* otherwise. A full block may also be *cached*: it has
a hash of all tokens up to its end, and an equal prefix finds it by that hash, used or free. A free
block keeps its hash, and its content, until it is allocated again. So the order of the free queue
is the order of eviction: blocks without a hash are at its front and are taken first; cached ones
join at its back, and the one that was freed longest ago is evicted first (LRU).

Every operation is O(1) a block: nothing here grows with the size of the pool.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from engine.trace.free_queue import FreeQueue

HASH_BYTES = 16


class OutOfBlocks(Exception):
    """Report that fewer blocks are free than were asked for. Nothing was changed (rule 7)."""


def root_hash(salt: str) -> bytes:
    """Return the parent hash of a sequence's first block.

    Requests find each other's blocks only if they have the same salt.
    """
    return blake2b(salt.encode(), digest_size=HASH_BYTES).digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash a full block: its tokens and, through `parent`, every token before them (rule 5)."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=HASH_BYTES).digest()


def recorded_hashes(chain: Sequence[bytes]) -> str:
    """Write the hashes for the record: 16 hex digits each are enough to tell them apart."""
    return b"".join([content[:8] for content in chain]).hex()


class BlockPool:
    """Hold `num_blocks` blocks, numbered from 0. The host pool of swapped-out blocks is one,
    too."""

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks  # block → block tables that name it
        self.hashes: list[bytes | None] = [None] * num_blocks  # block → its hash
        self.cached: dict[bytes, int] = {}  # hash → block
        self.free_queue = FreeQueue(num_blocks)
        self.num_cached_free = 0  # free blocks that have a hash

    @property
    def num_free(self) -> int:
        return len(self.free_queue)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self.free_queue)

    def allocate(self, count: int) -> tuple[list[int], list[tuple[int, bytes]]]:
        """Take `count` blocks from the front of the free queue, with one reference each.

        Returns them, and those among them that were cached, with the hash that they lost. Raises
        OutOfBlocks.
        """
        if count > len(self.free_queue):
            raise OutOfBlocks(f"{count} blocks wanted, {len(self.free_queue)} free")
        blocks: list[int] = []
        evicted: list[tuple[int, bytes]] = []
        for _ in range(count):
            block = self.free_queue.pop_left()
            old_hash = self.hashes[block]
            if old_hash is not None:
                del self.cached[old_hash]
                self.hashes[block] = None
                self.num_cached_free -= 1
                evicted.append((block, old_hash))
            self.references[block] = 1
            blocks.append(block)
        return blocks, evicted

    def share(self, blocks: Iterable[int]) -> None:
        """Add one reference to each of these blocks; free ones among them leave the free queue."""
        for block in blocks:
            if self.references[block] == 0:
                self.free_queue.remove(block)
                self.num_cached_free -= self.hashes[block] is not None
            self.references[block] += 1

    def free(self, blocks: Iterable[int]) -> None:
        """Remove one reference from each of these blocks.

        The caller passes a sequence's blocks last first, so that the blocks that fewer sequences
        could share are evicted first.
        """
        for block in blocks:
            self.references[block] -= 1
            if self.references[block] == 0:
                if self.hashes[block] is None:
                    self.free_queue.append_left(block)
                else:
                    self.free_queue.append(block)
                    self.num_cached_free += 1

    def cache(self, block: int, hash: bytes) -> bool:
        """Make a full, used block findable. Return False if an equal block already is: then this
        one isn't.
        """
        if hash in self.cached:
            return False
        self.cached[hash] = block
        self.hashes[block] = hash
        return True

    def forget(self, blocks: Iterable[int]) -> list[tuple[int, bytes]]:
        """Make these blocks unfindable; free ones keep their places in the queue.

        Returns those that could be found, each with the hash that it lost.
        """
        lost: list[tuple[int, bytes]] = []
        for block in blocks:
            old_hash = self.hashes[block]
            if old_hash is not None:
                del self.cached[old_hash]
                self.hashes[block] = None
                if self.references[block] == 0:
                    self.num_cached_free -= 1
                lost.append((block, old_hash))
        return lost

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Find the blocks of the longest cached beginning of this chain of hashes."""
        found = []
        for hash in hashes:
            block = self.cached.get(hash)
            if block is None:
                break
            found.append(block)
        return found

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise AssertionError unless the pool agrees with the existing block tables.

        For tests; O(num_blocks).
        """
        counted = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a table names a block twice: {table}"
            for block in table:
                counted[block] += 1
        assert counted == self.references, "reference counts differ from the block tables"
        for block, references in enumerate(self.references):
            assert (references == 0) == (block in self.free_queue), f"block {block}: used xor free"
        for hash, block in self.cached.items():
            assert self.hashes[block] == hash, (
                f"block {block} is cached under a hash that it doesn't have"
            )
        assert sum(h is not None for h in self.hashes) == len(self.cached), (
            "a block has a hash nobody finds"
        )
        cached_free = sum(self.hashes[block] is not None for block in self.free_queue)
        assert cached_free == self.num_cached_free, "miscounted cached and free blocks"
