"""Manage the blocks of each request: allocate, share, copy-on-write, swap, free.

Connects a request's block table to the pool, and records each change. Each method either does all
of its work or raises OutOfBlocks without having changed anything (rule 7).
"""

from __future__ import annotations

from collections.abc import Callable

from engine.core.block_pool import BlockPool, OutOfBlocks, block_hash, recorded_hashes, root_hash
from engine.core.core_record import CoreRecord
from engine.core.request import Request
from engine.trace import events
from engine.trace.together import why_evicted


class KVManager:
    """Manage `num_blocks` device and `num_host_blocks` host blocks of `block_size` tokens each.

    `pool` makes the device's pool: another kind may evict in another order.
    """

    def __init__(
        self,
        num_blocks: int,
        num_host_blocks: int,
        block_size: int,
        bytes_per_block: int,
        caching: bool,
        record: CoreRecord,
        pool: Callable[[int], BlockPool] = BlockPool,
    ):
        self.pool = pool(num_blocks)
        self.host_pool = BlockPool(num_host_blocks)
        self.block_size = block_size
        self.bytes_per_block = bytes_per_block
        self.caching = caching
        self.record = record

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)  # `ceil_div`, without a call for every row

    # -------------------------------------------------------------------------------------- growing

    def blocks_to_grow(self, request: Request, num_tokens: int) -> int:
        """Return how many free blocks `grow` would take."""
        start = request.num_planned_tokens
        fresh = self.blocks_for(start + num_tokens) - len(request.block_table)
        return max(0, fresh) + self._must_copy(request, start)

    def _must_copy(self, request: Request, start: int) -> bool:
        """Return whether position `start` is inside a block that others read, too (rule 6).

        Only siblings share a block that isn't full.
        """
        if start % self.block_size == 0 or not request.block_table:
            return False
        return self.pool.references[request.block_table[start // self.block_size]] > 1

    def grow(self, request: Request, num_tokens: int) -> tuple[int, int] | None:
        """Give the request slots for its next `num_tokens` tokens. Raises OutOfBlocks.

        Returns (source, destination) of the block that must be copied before anything is written,
        or None.
        """
        start, copied = request.num_planned_tokens, None
        if request.has_siblings and self._must_copy(request, start):
            copied = self._copy_on_write(request, start, num_tokens)
        if start + num_tokens > len(request.block_table) * self.block_size:
            self._append_fresh(request, start, num_tokens)
        return copied

    def _append_fresh(self, request: Request, start: int, num_tokens: int) -> None:
        index = len(request.block_table)
        blocks, evicted = self.pool.allocate(self.blocks_for(start + num_tokens) - index)
        request.block_table += blocks
        if self.record.enabled:
            self.record.grown.append((request.id, blocks, index, start, num_tokens, evicted))

    def _copy_on_write(self, request: Request, start: int, num_tokens: int) -> tuple[int, int]:
        """Give the request its own block for position `start`.

        Raises OutOfBlocks, also if the blocks after it for `num_tokens` tokens aren't free.
        """
        table, index = request.block_table, start // self.block_size
        if self.blocks_to_grow(request, num_tokens) > self.pool.num_free:
            raise OutOfBlocks(f"{request.id} needs a block to copy into and others to go on in")
        (block,), evicted = self.pool.allocate(1)
        copied = table[index], block
        table[index] = block
        self.pool.free([copied[0]])
        request.table_sent = min(request.table_sent, index)
        self._record_taken(evicted, request)
        if self.record.enabled:
            sharers = self.pool.references[copied[0]]
            readers = "another sequence reads" if sharers == 1 else f"{sharers} others read"
            self.record.record(
                events.BlockCopied(
                    request_id=request.id,
                    src_block=copied[0],
                    dst_block=copied[1],
                    index=index,
                    sharers=sharers,
                    why=f"token {start} would go into a block that {readers}",
                )
            )
        return copied

    def give_back(self, request: Request) -> list[int]:
        """Free the blocks behind the planned tokens, last first, and return them.

        They were for proposals that were wrong. No other request has them and none has a hash.
        """
        kept = self.blocks_for(request.num_planned_tokens)
        blocks = request.block_table[kept:][::-1]
        if blocks:
            self.pool.free(blocks)
            del request.block_table[kept:]
            request.table_sent = min(request.table_sent, kept)
        return blocks

    # --------------------------------------------------------------------------------- prefix cache

    def looks_up(self, request: Request) -> bool:
        """Return whether the request may begin with cached blocks.

        Not if the log-probabilities of its prompt are wanted: they need all of it computed.
        """
        return self.caching and request.core.params.prompt_logprobs is None

    def find_prefix(self, request: Request) -> list[int]:
        """Find the cached blocks that hold the request's beginning. Changes nothing.

        Stops before its last token: that one is always computed, since its logits are needed (rule
        5).
        """
        if not self.looks_up(request):
            return []
        self._extend_hashes(request, (request.num_tokens - 1) // self.block_size)
        return self.pool.find(request.block_hashes[: (request.num_tokens - 1) // self.block_size])

    def prompt_hashes(self, request: Request) -> str:
        """Return the hashes of the prompt's full blocks as the record has them.

        Finding the prefix needs the same ones later.
        """
        if not self.caching:
            return ""
        count = request.num_prompt_tokens // self.block_size
        self._extend_hashes(request, count)
        return recorded_hashes(request.block_hashes[:count])

    def output_hashes(self, request: Request) -> str:
        """Return the known hashes of the full blocks after the prompt's."""
        return recorded_hashes(request.block_hashes[request.num_prompt_tokens // self.block_size :])

    def attach_prefix(self, request: Request, blocks: list[int]) -> None:
        """Start the request's empty table with cached blocks, so that their tokens needn't be
        computed.
        """
        if not blocks:
            return
        self.pool.share(blocks)
        request.block_table.extend(blocks)
        request.set_computed(len(blocks) * self.block_size)
        request.num_cached_blocks = len(blocks)
        if self.record.enabled:
            self.record.record(
                events.BlockShared(
                    request_id=request.id,
                    blocks=list(blocks),
                    num_tokens=request.num_computed_tokens,
                    why=f"its first {request.num_computed_tokens} tokens are in the prefix cache",
                )
            )

    def cache_full_blocks(self, request: Request) -> None:
        """Offer newly full blocks to the prefix cache. Call once their K/V are computed."""
        if not self.caching:
            return
        full = request.num_computed_tokens // self.block_size
        if full <= request.num_cached_blocks:
            return
        self._extend_hashes(request, full)
        blocks, hashes = [], []
        for index in range(request.num_cached_blocks, full):
            if self.pool.cache(request.block_table[index], request.block_hashes[index]):
                blocks.append(request.block_table[index])
                hashes.append(request.block_hashes[index])
        request.num_cached_blocks = full
        if blocks and self.record.enabled:
            self.record.cached.append((request.id, blocks, hashes))

    def forget(self, request: Request, why: str) -> None:
        """Make the request's blocks unfindable, also those that it found in the cache."""
        self._record_evicted(self.pool.forget(request.block_table), why)

    def forget_all(self, why: str) -> int:
        """Make every block unfindable; requests keep theirs.

        Returns how many could be found before.
        """
        forgotten = self.pool.forget(list(self.pool.cached.values()))
        self._record_evicted(forgotten, why)
        return len(forgotten)

    def _extend_hashes(self, request: Request, count: int) -> None:
        chain, size = request.block_hashes, self.block_size
        while len(chain) < count:
            parent = chain[-1] if chain else root_hash(request.core.cache_salt)
            chain.append(
                block_hash(parent, request.token_ids[len(chain) * size : (len(chain) + 1) * size])
            )

    # -------------------------------------------------------------------------------- fork and free

    def fork(self, parent: Request, child: Request) -> None:
        """Let the child read all of the parent's blocks, also the partial last one.

        The first to write copies that block (rule 6).
        """
        child.block_table = list(parent.block_table)
        child.set_computed(parent.num_computed_tokens)
        child.num_cached_blocks = parent.num_cached_blocks
        child.block_hashes = list(parent.block_hashes)
        self.pool.share(child.block_table)
        if self.record.enabled:
            self.record.record(
                events.BlockShared(
                    request_id=child.id,
                    blocks=list(child.block_table),
                    num_tokens=child.num_computed_tokens,
                    why=f"forked from {parent.id}: same prompt, same blocks",
                )
            )

    def free(self, request: Request, why: str) -> None:
        """Release all of the request's blocks, last first, and its host blocks."""
        blocks = request.block_table[::-1]
        host_blocks = request.host_blocks
        self.pool.free(blocks)
        self.host_pool.free(host_blocks)
        request.block_table = []
        request.host_blocks = []
        request.num_cached_blocks = 0
        if (blocks or host_blocks) and self.record.enabled:
            self.record.record(
                events.BlockFreed(
                    request_id=request.id, blocks=blocks, host_blocks=host_blocks, why=why
                )
            )

    # ----------------------------------------------------------------------------------------- swap

    def blocks_to_swap(self, request: Request) -> int:
        """Return how many host blocks swapping this request out takes: those with computed
        tokens."""
        return self.blocks_for(request.num_computed_tokens)

    def swap_out(self, request: Request) -> list[tuple[int, int]]:
        """Take host blocks for the request's K/V; `free` of its device blocks follows. Raises
        OutOfBlocks.

        Returns (device block, host block) pairs to copy before anything else happens in the step.
        """
        blocks = request.block_table[: self.blocks_to_swap(request)]
        host_blocks, _ = self.host_pool.allocate(len(blocks))
        if self.record.enabled:
            self.record.record(
                events.BlockSwappedOut(
                    request_id=request.id,
                    blocks=blocks,
                    host_blocks=host_blocks,
                    num_bytes=len(blocks) * self.bytes_per_block,
                )
            )
        self.free(request, "swapped out")
        request.host_blocks = host_blocks
        return list(zip(blocks, host_blocks, strict=True))

    def swap_in(self, request: Request) -> list[tuple[int, int]]:
        """Give a swapped-out request fresh device blocks. Raises OutOfBlocks.

        Returns (host block, device block) pairs.
        """
        host_blocks = request.host_blocks
        blocks, evicted = self.pool.allocate(len(host_blocks))
        self._record_taken(evicted, request)
        request.block_table = blocks
        request.host_blocks = []
        self.host_pool.free(host_blocks)
        if self.record.enabled:
            self.record.record(
                events.BlockAllocated(
                    request_id=request.id, blocks=list(blocks), why="to swap its K/V back in"
                )
            )
            self.record.record(
                events.BlockSwappedIn(
                    request_id=request.id,
                    blocks=list(blocks),
                    host_blocks=host_blocks,
                    num_bytes=len(blocks) * self.bytes_per_block,
                )
            )
        return list(zip(host_blocks, blocks, strict=True))

    def _record_taken(self, evicted: list[tuple[int, bytes]], request: Request) -> None:
        self._record_evicted(evicted, why_evicted(request.id))

    def _record_evicted(self, evicted: list[tuple[int, bytes]], why: str) -> None:
        if not self.record.enabled:
            return
        for block, old_hash in evicted:
            self.record.record(events.BlockEvicted(block=block, hash=old_hash.hex(), why=why))
