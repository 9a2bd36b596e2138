"""Fold the core's events into its exact state: block pool, host pool, tables, queues.

The fold is strict. It knows how the free queue moves (see `BlockPool`), so an event that
contradicts the state so far raises ReplayError; a wrong state can't result:

- the free queue starts as 0, 1, 2, …; blocks are taken from its front;
- a block whose content could still be found has a `block.evicted` before it is taken for another
  use;
- a block that nobody references any more joins the queue: with a hash at its back, without one at
  its front.

The pool of another engine (`engine.kv_sized` with `ordered` false) may take any free block: of it
the free queue is a set, and all else holds.

Its size is bounded by the pool and by the requests that are alive, so a server can keep one for as
long as it runs.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.trace import events as ev
from engine.trace.events import Event, kind
from engine.trace.free_queue import FreeQueue
from engine.trace.wording import count


class ReplayError(Exception):
    """Report an event that doesn't follow from the ones before: the record is incomplete or
    wrong."""


@dataclass(slots=True)
class Sequence:
    """Hold one living sequence of a request. Siblings of `n > 1` are sequences of their own."""

    rank: tuple[int, ...]
    status: str  # "waiting", "running", "preempted"
    num_computed_tokens: int = 0  # whose K/V are in the cache, or in the host pool


class EngineState:
    """Hold the state after the events folded so far. Read its fields; change it only with
    `fold`."""

    def __init__(self, num_blocks: int = 0, num_host_blocks: int = 0) -> None:
        self.step = 0  # of the last event that had one
        self.last_seq = 0  # of the core
        self.lost = 0  # events that are missing, counted by gaps in seq
        self.block_size = 0  # tokens; 0 until engine.kv_sized
        self.num_host_blocks = num_host_blocks
        self.ordered = True  # the next block to be taken is the first of the free queue
        self.references = [0] * num_blocks  # block → block tables that name it
        self.hashes: dict[int, str] = {}  # block → hash of its content, if it can be found
        self.cached: dict[str, int] = {}  # hash → block
        self.free_queue = FreeQueue(num_blocks)
        self.host_tables: dict[str, list[int]] = {}  # swapped-out sequence → its host blocks
        self.tables: dict[str, list[int]] = {}  # sequence → its block table
        self.sequences: dict[str, Sequence] = {}  # alive ones
        self.running: list[tuple[tuple[int, ...], str]] = []  # by rank
        self.waiting: list[tuple[tuple[int, ...], str]] = []  # by rank
        self.planned: dict[int, list[ev.StepRow]] = {}  # steps that haven't returned yet

    @property
    def num_blocks(self) -> int:
        return len(self.references)

    @property
    def host_blocks_used(self) -> set[int]:
        return {block for table in self.host_tables.values() for block in table}

    # ------------------------------------------------------------------------------ public verbs

    def fold(self, event: Event) -> None:
        """Apply one event. Raises ReplayError if it contradicts the state, which is then
        useless."""
        if event.src != "core":
            return
        if event.seq:
            if event.seq != self.last_seq + 1 and self.last_seq:
                self.lost += event.seq - self.last_seq - 1
            self.last_seq = event.seq
        if event.step:
            self.step = event.step
        fold = _FOLDS.get(type(event))
        if fold is not None:
            try:
                fold(self, event)
            except _Contradiction as problem:
                raise ReplayError(self._explain(event, str(problem))) from None
            except (KeyError, IndexError, ValueError) as error:
                problem_text = f"it names {error}, which doesn't exist at this point"
                raise ReplayError(self._explain(event, problem_text)) from error

    def check(self) -> None:
        """Raise ReplayError unless tables, reference counts, free queue and cache agree.
        O(num_blocks).
        """
        counted = [0] * self.num_blocks
        for sequence, table in self.tables.items():
            if len(set(table)) != len(table):
                raise ReplayError(f"the table of {sequence} names a block twice: {table}")
            for block in table:
                counted[block] += 1
        for block, (tables, references) in enumerate(zip(counted, self.references, strict=True)):
            if tables != references:
                raise ReplayError(f"block {block}: {references} references in {tables} tables")
            if (references == 0) != (block in self.free_queue):
                raise ReplayError(f"block {block}: {references} references, yet it is also free")
        if len(self.cached) != len(self.hashes) or any(
            self.hashes.get(block) != content for content, block in self.cached.items()
        ):
            raise ReplayError("the map from hashes to blocks differs from the hashes of the blocks")
        if len(self.host_blocks_used) != sum(map(len, self.host_tables.values())):
            raise ReplayError("two sequences hold the same host block")
        if self.waiting != sorted(self.waiting) or self.running != sorted(self.running):
            raise ReplayError("a queue is out of order")

    def copy(self) -> EngineState:
        """Return an independent copy. O(num_blocks)."""
        other = EngineState()
        for name in ("step", "last_seq", "lost", "block_size", "num_host_blocks"):
            setattr(other, name, getattr(self, name))
        for name in (
            "references", "hashes", "cached", "free_queue", "running", "waiting", "planned"
        ):  # fmt: skip
            setattr(other, name, getattr(self, name).copy())
        other.tables = {name: table.copy() for name, table in self.tables.items()}
        other.host_tables = {name: table.copy() for name, table in self.host_tables.items()}
        other.sequences = {name: replace(state) for name, state in self.sequences.items()}
        return other

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a dict that JSON can carry.

        The page draws it, and tests compare it (see `differences`).
        """
        return {
            "step": self.step,
            "lost": self.lost,
            "block_size": self.block_size,
            "references": self.references.copy(),  # by block
            "hashes": [self.hashes.get(block) for block in range(self.num_blocks)],  # by block
            "cached": self.cached.copy(),  # hash → block
            "free_queue": list(self.free_queue),  # next to be taken first
            "tables": {name: table.copy() for name, table in self.tables.items()},
            "num_host_blocks": self.num_host_blocks,
            "host_blocks_used": sorted(self.host_blocks_used),
            "host_tables": {name: table.copy() for name, table in self.host_tables.items()},
            "running": [name for _rank, name in self.running],
            "waiting": [name for _rank, name in self.waiting],
            "status": {name: state.status for name, state in self.sequences.items()},
            "num_computed_tokens": {
                name: state.num_computed_tokens for name, state in self.sequences.items()
            },
        }

    def snapshot(self) -> ev.EngineSnapshot:
        """Return the state as an event: folding it gives any other `EngineState` this state."""
        return ev.EngineSnapshot(
            step=self.step,
            state=self.to_dict(),
            ranks={name: list(sequence.rank) for name, sequence in self.sequences.items()},
            planned=[ev.PlannedStep(step, rows) for step, rows in self.planned.items()],
            last_seq=self.last_seq,
        )

    def _restore(self, event: ev.EngineSnapshot) -> None:
        told = event.state
        if told is None:
            raise _Contradiction("the record had a gap before it began, so its state isn't known")
        self.num_host_blocks = told["num_host_blocks"]
        self.step, self.last_seq, self.lost = told["step"], event.last_seq, told["lost"]
        self.block_size = told["block_size"]
        self.references = list(told["references"])
        self.hashes = {b: content for b, content in enumerate(told["hashes"]) if content}
        self.cached = dict(told["cached"])
        self.free_queue = FreeQueue.of(told["free_queue"])
        self.host_tables = {name: list(table) for name, table in told["host_tables"].items()}
        self.tables = {name: list(table) for name, table in told["tables"].items()}
        self.sequences = {
            name: Sequence(tuple(event.ranks[name]), status, told["num_computed_tokens"][name])
            for name, status in told["status"].items()
        }
        self.running = [(self.sequences[name].rank, name) for name in told["running"]]
        self.waiting = [(self.sequences[name].rank, name) for name in told["waiting"]]
        self.planned = {planned.step: planned.rows for planned in event.planned}

    # ------------------------------------------------------------------------------ requests

    def _queued(self, event: ev.RequestQueued) -> None:
        if event.request_id in self.sequences:
            raise _Contradiction("a request of this name is alive already")
        rank = (*event.rank, 0, 0, 0)[:3]  # [priority, arrival, index]; a missing index is 0
        self.sequences[event.request_id] = Sequence(rank, "waiting")
        insort(self.waiting, (rank, event.request_id))

    def _started(self, event: ev.RequestAdmitted | ev.RequestResumed) -> None:
        sequence = self.sequences[event.request_id]
        self.waiting.remove((sequence.rank, event.request_id))
        insort(self.running, (sequence.rank, event.request_id))
        sequence.status = "running"
        sequence.num_computed_tokens = event.num_cached_tokens

    def _forked(self, event: ev.RequestForked) -> None:
        rank = (*self.sequences[event.parent].rank[:2], event.index)
        self.sequences[event.request_id] = Sequence(rank, "running", event.num_computed_tokens)
        insort(self.running, (rank, event.request_id))

    def _preempted(self, event: ev.RequestPreempted) -> None:
        sequence = self.sequences[event.request_id]
        self.running.remove((sequence.rank, event.request_id))
        insort(self.waiting, (sequence.rank, event.request_id))
        sequence.status = "preempted"
        if event.mode == "recompute":
            sequence.num_computed_tokens = 0

    def _ended(self, event: ev.RequestFinished | ev.RequestAborted) -> None:
        # Its blocks stay until block.freed: a step in flight may still write to them.
        sequence = self.sequences.pop(event.request_id)
        queue = self.running if sequence.status == "running" else self.waiting
        queue.remove((sequence.rank, event.request_id))

    def _refused(self, event: ev.RequestRefused) -> None:
        if event.request_id in self.sequences:
            self.waiting.remove((self.sequences.pop(event.request_id).rank, event.request_id))

    # ------------------------------------------------------------------------------ steps

    def _step_planned(self, event: ev.StepPlanned) -> None:
        self.planned[event.step] = event.rows

    def _step_finished(self, event: ev.StepFinished) -> None:
        for row in self.planned.pop(event.step):
            sequence = self.sequences.get(row.request_id)
            if sequence is not None and sequence.status == "running":
                sequence.num_computed_tokens = row.start + row.num_tokens

    def _verified(self, event: ev.SpecVerified) -> None:
        # Rows of wrong proposals computed nothing that counts; the plan's own list stays as it is.
        end = event.position + event.num_accepted
        self.planned[event.step] = [
            row
            for row in self.planned[event.step]
            if row.request_id != event.request_id or row.start < end
        ]
        if event.blocks:
            table = self.tables[event.request_id]
            if table[: -len(event.blocks) - 1 : -1] != event.blocks:
                raise _Contradiction(f"its table is {table}")
            del table[-len(event.blocks) :]
        for block in event.blocks:
            self._drop(block)

    # ------------------------------------------------------------------------------ blocks

    def _take(self, block: int) -> None:
        """Remove `block` from the front of the free queue, and give it one reference."""
        if not self.free_queue:
            raise _Contradiction(f"block {block} is taken, but no block is free")
        if not self.ordered:
            if block not in self.free_queue:
                raise _Contradiction(f"block {block} is taken, but it is not free")
            self.free_queue.remove(block)
        elif (front := self.free_queue.pop_left()) != block:
            raise _Contradiction(f"block {block} is taken, but block {front} is the next free one")
        if block in self.hashes:
            raise _Contradiction(f"block {block} is taken, but its content was not evicted")
        self.references[block] = 1

    def _drop(self, block: int) -> None:
        """Remove one reference; after the last, the block joins the free queue."""
        self.references[block] -= 1
        if self.references[block] < 0:
            raise _Contradiction(f"block {block} is freed, but nobody references it")
        if self.references[block] == 0:
            if block in self.hashes:
                self.free_queue.append(block)
            else:
                self.free_queue.append_left(block)

    def _append(self, event: ev.BlockAllocated | ev.BlockShared) -> None:
        table = self.tables.setdefault(event.request_id, [])
        if event.index != len(table):
            raise _Contradiction(f"index {event.index}, but its table has {len(table)} entries")
        table.extend(event.blocks)

    def _allocated(self, event: ev.BlockAllocated) -> None:
        for block in event.blocks:
            self._take(block)
        self._append(event)

    def _shared(self, event: ev.BlockShared) -> None:
        for block in event.blocks:
            if self.references[block] == 0:
                self.free_queue.remove(block)
            self.references[block] += 1
        self._append(event)

    def _cached(self, event: ev.BlockCached) -> None:
        for block, content in zip(event.blocks, event.hashes, strict=True):
            if content in self.cached:
                raise _Contradiction(f"block {block}: its content is cached already")
            self.hashes[block] = content
            self.cached[content] = block

    def _evicted(self, event: ev.BlockEvicted) -> None:
        content = self.hashes.pop(event.block)
        if content != event.hash:
            raise _Contradiction(f"block {event.block} had the hash {content}")
        del self.cached[content]

    def _copied(self, event: ev.BlockCopied) -> None:
        table = self.tables[event.request_id]
        if table[event.index] != event.src_block:
            raise _Contradiction(f"entry {event.index} of its table is block {table[event.index]}")
        self._take(event.dst_block)
        table[event.index] = event.dst_block
        self._drop(event.src_block)

    def _freed(self, event: ev.BlockFreed) -> None:
        if event.blocks:
            table = self.tables.pop(event.request_id)
            if sorted(table) != sorted(event.blocks):
                raise _Contradiction(f"its table is {table}")
        for block in event.blocks:
            self._drop(block)
        self._release_host_blocks(event)

    def _swapped_out(self, event: ev.BlockSwappedOut) -> None:
        used = self.host_blocks_used.intersection(event.host_blocks)
        if used:
            raise _Contradiction(f"host blocks {sorted(used)} are in use already")
        if max(event.host_blocks, default=0) >= max(self.num_host_blocks, 1):
            raise _Contradiction(f"the host pool has only {self.num_host_blocks} blocks")
        self.host_tables[event.request_id] = list(event.host_blocks)

    def _release_host_blocks(self, event: ev.BlockFreed | ev.BlockSwappedIn) -> None:
        if event.host_blocks:
            held = self.host_tables.pop(event.request_id)
            if held != event.host_blocks:
                raise _Contradiction(f"its host blocks are {held}")

    def _kv_sized(self, event: ev.EngineKvSized) -> None:
        if any(self.references):
            raise _Contradiction("the cache is sized while blocks are in use")
        self.references = [0] * event.num_blocks
        self.free_queue = FreeQueue(event.num_blocks)
        self.num_host_blocks = event.num_host_blocks
        self.block_size = event.block_size
        self.ordered = event.ordered

    # ------------------------------------------------------------------------------ details

    def _explain(self, event: Event, problem: str) -> str:
        of = f" of {event.request_id}" if event.request_id else ""
        where = f"event {event.seq} ({kind(event)}{of}, step {event.step})"
        missing = f". {count(self.lost, 'event')} missing before it" if self.lost else ""
        return f"{where} doesn't follow from the events before it: {problem}{missing}"


class _Contradiction(Exception):
    """Signal a contradiction inside a fold; `fold` makes a ReplayError of it that names the
    event."""


_FOLDS: dict[type[Event], Callable[[EngineState, Any], None]] = {
    ev.RequestQueued: EngineState._queued,
    ev.RequestAdmitted: EngineState._started,
    ev.RequestResumed: EngineState._started,
    ev.RequestForked: EngineState._forked,
    ev.RequestPreempted: EngineState._preempted,
    ev.RequestFinished: EngineState._ended,
    ev.RequestAborted: EngineState._ended,
    ev.RequestRefused: EngineState._refused,
    ev.StepPlanned: EngineState._step_planned,
    ev.SpecVerified: EngineState._verified,
    ev.StepFinished: EngineState._step_finished,
    ev.BlockAllocated: EngineState._allocated,
    ev.BlockShared: EngineState._shared,
    ev.BlockCached: EngineState._cached,
    ev.BlockEvicted: EngineState._evicted,
    ev.BlockCopied: EngineState._copied,
    ev.BlockFreed: EngineState._freed,
    ev.BlockSwappedOut: EngineState._swapped_out,
    ev.BlockSwappedIn: EngineState._release_host_blocks,
    ev.EngineKvSized: EngineState._kv_sized,
    ev.EngineSnapshot: EngineState._restore,
}
