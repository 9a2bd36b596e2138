"""Keep what happens to many requests in one step as one event until somebody reads it.

In nearly every step some requests begin a block, some fill one, and where grammars force tokens
many have proposals. One event for each would cost the loop more than the fact is worth. So the core
records them together, as rows of plain values, and `one_by_one` gives them to readers as single
events, each with its own `seq`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Union

from engine.trace.events import (
    ALL_EVENTS,
    BlockAllocated,
    BlockCached,
    BlockEvicted,
    Event,
    SpecVerified,
)

Evicted = list[tuple[int, bytes]]
"""(block, the hash that it lost)"""


def why_evicted(request_id: str) -> str:
    """Return why a block was evicted when a request took it."""
    return f"no block without cached content was free, and {request_id} needs one"


class BlocksGrown(Event, tag="blocks.grown"):
    """Hold `block.allocated` of several requests, each after the `block.evicted` that made room."""

    rows: list[tuple[str, list[int], int, int, int, Evicted]] = []
    """(request id, its fresh blocks, index, first token that they are for, tokens, evicted)"""
    stands_for: ClassVar = (BlockAllocated, BlockEvicted)

    def __len__(self) -> int:
        return len(self.rows) + sum(len(row[-1]) for row in self.rows)

    def one_by_one(self) -> Iterator[Event]:
        for request_id, blocks, index, first, count, evicted in self.rows:
            for block, old_hash in evicted:
                why = why_evicted(request_id)
                yield BlockEvicted(block=block, hash=old_hash.hex(), why=why)
            last = first + count - 1
            why = f"for token {first}" if count == 1 else f"for tokens {first} to {last}"
            yield BlockAllocated(request_id=request_id, blocks=blocks, index=index, why=why)


class BlocksCached(Event, tag="blocks.cached"):
    """Hold `block.cached` of several requests."""

    rows: list[tuple[str, list[int], list[bytes]]] = []
    """(request id, its blocks that became full, their hashes)"""
    stands_for: ClassVar = (BlockCached,)

    def __len__(self) -> int:
        return len(self.rows)

    def one_by_one(self) -> Iterator[Event]:
        for request_id, blocks, hashes in self.rows:
            names = [hash.hex() for hash in hashes]
            yield BlockCached(request_id=request_id, blocks=blocks, hashes=names)


class ProposalsVerified(Event, tag="proposals.verified"):
    """Hold `spec.verified` of several requests."""

    rows: list[tuple[str, int, int, int, int, list[int]]] = []
    """(request id, position, proposed, accepted, source, blocks given back)"""
    stands_for: ClassVar = (SpecVerified,)

    def __len__(self) -> int:
        return len(self.rows)

    def one_by_one(self) -> Iterator[Event]:
        for request_id, position, proposed, accepted, source, blocks in self.rows:
            yield SpecVerified(
                request_id=request_id,
                position=position,
                num_proposed=proposed,
                num_accepted=accepted,
                source=source,
                blocks=blocks,
                why=_why_no_more(proposed, accepted, position),
            )


def _why_no_more(num_proposed: int, right: int, position: int) -> str:
    """Say why no more proposals were right."""
    if right < num_proposed:
        return f"another token was drawn for position {position + right}"
    return "all were right" if num_proposed else "the draft model would end the text here"


TOGETHER = (BlocksGrown, BlocksCached, ProposalsVerified)

AnyEvents: Any = Union[ALL_EVENTS + TOGETHER]  # noqa: UP007 - a tuple can't be spelled with |
"""The union that msgspec decodes a batch of another process with."""


def how_many(event: Event) -> int:
    """Return how many events a reader gets for this one."""
    return len(event) if isinstance(event, TOGETHER) else 1


def one_by_one(events: Iterable[Event]) -> list[Event]:
    """Yield the events one by one, as the record has them."""
    alone: list[Event] = []
    for event in events:
        if not isinstance(event, TOGETHER):
            alone.append(event)
            continue
        for seq, one in enumerate(event.one_by_one(), event.seq):
            one.seq, one.ts_ns, one.step, one.src = seq, event.ts_ns, event.step, event.src
            alone.append(one)
    return alone
