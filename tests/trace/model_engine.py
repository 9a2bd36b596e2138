"""A tiny engine for the tests of the record: it moves real blocks between real queues and says so
in events.

It is the third telling of the pool's rules (core/block_pool.py and trace/state.py are the others),
written as plainly as possible: lists, searched from the front. It computes nothing; which operation
comes next is drawn by the test.
"""

from __future__ import annotations

import random

from engine.trace import events as ev
from engine.trace.events import Event

BLOCK_SIZE = 4
BUDGET = 12


class ModelSequence:
    def __init__(self, name: str, rank: list[int], num_tokens: int):
        self.name = name
        self.rank = rank
        self.num_tokens = num_tokens
        self.num_prompt_tokens = num_tokens
        self.computed = 0
        self.table: list[int] = []
        self.host: list[int] = []
        self.status = "waiting"
        self.mode = ""


class ModelEngine:
    """`events` is its record; `to_dict()` the truth, in the form of `EngineState.to_dict()`."""

    def __init__(self, num_blocks: int, num_host_blocks: int, seed: int):
        self.random = random.Random(seed)
        self.events: list[Event] = []
        self.now_ns = 1_000_000_000
        self.step = 0
        self.free = list(range(num_blocks))
        self.references = [0] * num_blocks
        self.hashes: list[str | None] = [None] * num_blocks
        self.host_free = list(range(num_host_blocks))
        self.num_host_blocks = num_host_blocks
        self.alive: list[ModelSequence] = []
        self.arrivals = 0
        self.leaving: list[ModelSequence] = []
        self.emit(ev.EngineStarted(version="0.1.0", machine={"device": "cpu", "cores": 2}))
        self.emit(
            ev.EngineKvSized(
                num_blocks=num_blocks,
                num_host_blocks=num_host_blocks,
                block_size=BLOCK_SIZE,
                bytes_per_block=4096,
                why="a test said so",
            )
        )

    def emit(self, event: Event) -> None:
        event.seq = len(self.events) + 1
        self.now_ns += self.random.randrange(1_000, 200_000)
        event.ts_ns = self.now_ns
        event.step = self.step
        self.events.append(event)

    # ------------------------------------------------------------------------------ the pool

    def take(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            block = self.free.pop(0)
            if self.hashes[block] is not None:
                self.emit(ev.BlockEvicted(block=block, hash=self.hashes[block], why="needed"))
                self.hashes[block] = None
            self.references[block] = 1
            taken.append(block)
        return taken

    def drop(self, block: int) -> None:
        self.references[block] -= 1
        if self.references[block] == 0:
            if self.hashes[block] is None:
                self.free.insert(0, block)
            else:
                self.free.append(block)

    def release(self, sequence: ModelSequence, why: str) -> None:
        blocks, host = sequence.table[::-1], sequence.host
        sequence.table, sequence.host = [], []
        for block in blocks:
            self.drop(block)
        self.host_free = sorted(self.host_free + host)
        if blocks or host:
            name = sequence.name
            self.emit(ev.BlockFreed(request_id=name, blocks=blocks, host_blocks=host, why=why))

    def share(self, sequence: ModelSequence, blocks: list[int], why: str) -> None:
        for block in blocks:
            if self.references[block] == 0:
                self.free.remove(block)
            self.references[block] += 1
        sequence.table = list(blocks)
        self.emit(
            ev.BlockShared(
                request_id=sequence.name,
                blocks=list(blocks),
                num_tokens=len(blocks) * BLOCK_SIZE,
                why=why,
            )
        )

    def grow(self, sequence: ModelSequence, num_tokens: int) -> bool:
        """Slots for the next tokens; False (and nothing changed) if there are too few blocks."""
        start, table = sequence.computed, sequence.table
        fresh = max(0, -(-(start + num_tokens) // BLOCK_SIZE) - len(table))
        index = start // BLOCK_SIZE
        copy = start % BLOCK_SIZE > 0 and self.references[table[index]] > 1
        if fresh + copy > len(self.free):
            return False
        if copy:
            source, taken = table[index], self.take(1)[0]
            table[index] = taken
            self.drop(source)
            self.emit(
                ev.BlockCopied(
                    request_id=sequence.name,
                    src_block=source,
                    dst_block=taken,
                    index=index,
                    sharers=self.references[source],
                    why=f"token {start} goes there",
                )
            )
        if fresh:
            at, blocks = len(table), self.take(fresh)
            table.extend(blocks)
            self.emit(
                ev.BlockAllocated(request_id=sequence.name, blocks=blocks, index=at, why="growth")
            )
        return True

    # ------------------------------------------------------------------------------ what can happen

    def in_order(self, *status: str) -> list[ModelSequence]:
        chosen = [s for s in self.alive if s.status in status]
        return sorted(chosen, key=lambda s: s.rank)

    def arrive(self, num_tokens: int, priority: int = 0) -> None:
        self.arrivals += 1
        rank = [priority, self.arrivals, 0]
        sequence = ModelSequence(f"req-{self.arrivals}", rank, num_tokens)
        self.alive.append(sequence)
        self.emit(
            ev.RequestQueued(
                request_id=sequence.name,
                num_prompt_tokens=num_tokens,
                max_tokens=20,
                priority=priority,
                rank=rank,
                queue_length=len(self.in_order("waiting", "preempted")),
            )
        )

    def admit(self) -> None:
        waiting = self.in_order("waiting", "preempted")
        if not waiting:
            return
        head = waiting[0]
        cached = [b for b, h in enumerate(self.hashes) if h is not None]
        prefix = [] if head.host else sorted(self.random.sample(cached, min(len(cached), 2)))
        prefix = prefix[: (head.num_tokens - 1) // BLOCK_SIZE]
        need = -(-head.num_tokens // BLOCK_SIZE) - sum(self.references[b] > 0 for b in prefix)
        if need > len(self.free):
            self.emit(
                ev.RequestWaiting(
                    request_id=head.name,
                    waits_for="blocks",
                    need=need,
                    available=len(self.free),
                    why="too few blocks",
                )
            )
            return
        head.computed = head.computed if head.host else len(prefix) * BLOCK_SIZE
        started = ev.RequestResumed if head.status == "preempted" else ev.RequestAdmitted
        common = {"num_tokens": head.num_tokens, "num_cached_tokens": head.computed, "why": "fits"}
        event = started(request_id=head.name, waited_us=12.5, **common)
        if isinstance(event, ev.RequestResumed):
            event.mode = head.mode
        head.status = "running"
        self.emit(event)
        if head.host:
            blocks, host = self.take(len(head.host)), head.host
            head.table, head.host = blocks, []
            self.emit(ev.BlockAllocated(request_id=head.name, blocks=list(blocks), why="swap"))
            self.host_free = sorted(self.host_free + host)
            self.emit(
                ev.BlockSwappedIn(
                    request_id=head.name, blocks=list(blocks), host_blocks=host, num_bytes=4096
                )
            )
        elif prefix:
            self.share(head, prefix, "in the prefix cache")

    def fork(self) -> None:
        running = self.in_order("running")
        parents = [s for s in running if s.rank[2] == 0 and s.computed and s.computed % BLOCK_SIZE]
        if not parents:
            return
        parent = parents[0]
        siblings = [s for s in self.alive + self.leaving if s.rank[:2] == parent.rank[:2]]
        index = max(s.rank[2] for s in siblings) + 1
        child = ModelSequence(
            f"{parent.name}.{index}", [*parent.rank[:2], index], parent.num_tokens
        )
        child.computed, child.status = parent.computed, "running"
        self.alive.append(child)
        self.emit(
            ev.RequestForked(
                request_id=child.name,
                parent=parent.name,
                index=index,
                num_computed_tokens=child.computed,
                why="n = 2",
            )
        )
        self.share(child, parent.table, "a fork")

    def preempt(self, swap: bool) -> None:
        running = self.in_order("running")
        if not running:
            return
        victim = running[-1]
        keep = -(-victim.computed // BLOCK_SIZE)
        swap = swap and 0 < keep <= len(self.host_free)
        victim.status, victim.mode = "preempted", "swap" if swap else "recompute"
        self.emit(
            ev.RequestPreempted(
                request_id=victim.name,
                mode=victim.mode,
                num_blocks=len(victim.table),
                num_computed_tokens=victim.computed,
                for_request=running[0].name,
                recompute_ms=3.25,
                swap_ms=1.5,
                why="cheaper",
            )
        )
        if swap:
            host, self.host_free = self.host_free[:keep], self.host_free[keep:]
            self.emit(
                ev.BlockSwappedOut(
                    request_id=victim.name,
                    blocks=victim.table[:keep],
                    host_blocks=host,
                    num_bytes=4096,
                )
            )
            self.release(victim, "swapped out")
            victim.host = host
        else:
            self.release(victim, "preempted")
            victim.computed = 0

    def end(self, pick: int, abort: bool, later: bool = False) -> None:
        """Finish or abort a sequence; `later`: its blocks stay until `settle`, as with work in
        flight.
        """
        chosen = self.in_order("running", "waiting", "preempted") if abort else []
        chosen = chosen or self.in_order("running")
        if not chosen:
            return
        sequence = chosen[pick % len(chosen)]
        self.alive.remove(sequence)
        if abort:
            self.emit(ev.RequestAborted(request_id=sequence.name, why="the client left"))
        else:
            self.emit(
                ev.RequestFinished(
                    request_id=sequence.name,
                    reason="length",
                    num_prompt_tokens=sequence.num_prompt_tokens,
                    num_output_tokens=sequence.num_tokens - sequence.num_prompt_tokens,
                    queued_ms=0.5,
                    running_ms=12.0,
                    why="max_tokens reached",
                )
            )
        if later and sequence.status == "running":  # only those have work in flight
            self.leaving.append(sequence)
        else:
            self.release(sequence, "over")

    def settle(self) -> None:
        for sequence in self.leaving:
            self.release(sequence, "over, and nothing is in flight")
        self.leaving = []

    def run_step(self) -> None:
        """Compute up to BUDGET tokens of those that run."""
        self.step += 1
        rows, budget = [], BUDGET
        for sequence in self.in_order("running"):
            count = min(sequence.num_tokens - sequence.computed, budget)
            if count and self.grow(sequence, count):
                budget -= count
                samples = int(sequence.computed + count == sequence.num_tokens)
                rows.append(
                    (sequence, ev.StepRow(sequence.name, sequence.computed, count, samples))
                )
        used = sum(r > 0 for r in self.references)
        cached_free = sum(self.hashes[b] is not None for b in self.free)
        self.emit(
            ev.StepPlanned(
                rows=[row for _s, row in rows],
                budget=BUDGET,
                budget_used=BUDGET - budget,
                num_running=len(self.in_order("running")),
                num_waiting=len(self.in_order("waiting", "preempted")),
                blocks_used=used,
                blocks_cached_free=cached_free,
                blocks_free=len(self.free) - cached_free,
                host_blocks_used=self.num_host_blocks - len(self.host_free),
                schedule_us=40.0,
            )
        )
        self.now_ns += 2_000_000
        for sequence, row in rows:
            sequence.computed += row.num_tokens
            sequence.num_tokens += row.samples
            full = [
                b
                for b in sequence.table[: sequence.computed // BLOCK_SIZE]
                if self.hashes[b] is None and self.random.random() < 0.8
            ]
            names = [f"{self.random.getrandbits(64):016x}" for _ in full]
            for block, name in zip(full, names, strict=True):
                self.hashes[block] = name
            if full:
                self.emit(ev.BlockCached(request_id=sequence.name, blocks=full, hashes=names))
        self.emit(
            ev.StepFinished(
                num_tokens=BUDGET - budget,
                num_decode_tokens=sum(row.num_tokens == 1 for _s, row in rows),
                num_sampled=sum(row.samples for _s, row in rows),
                schedule_us=40.0,
                prepare_us=60.0,
                forward_us=1800.0,
                sample_us=90.0,
                update_us=20.0,
                total_us=2040.0,
                loop="plain",
            )
        )

    def random_operation(self) -> None:
        choice = self.random.random()
        if choice < 0.12:
            self.arrive(self.random.randint(1, 20), self.random.choice([0, 0, 0, -1, 1]))
        elif choice < 0.35:
            self.admit()
        elif choice < 0.40:
            self.fork()
        elif choice < 0.46:
            self.preempt(swap=self.random.random() < 0.6)
        elif choice < 0.54:
            self.end(self.random.randrange(8), abort=choice < 0.5, later=self.random.random() < 0.3)
        elif choice < 0.57:
            self.settle()
        else:
            self.run_step()

    # ------------------------------------------------------------------------------ the truth

    def to_dict(self) -> dict:
        swapped = {s.name: list(s.host) for s in self.alive if s.host}
        return {
            "references": list(self.references),
            "hashes": list(self.hashes),
            "cached": {h: b for b, h in enumerate(self.hashes) if h is not None},
            "free_queue": list(self.free),
            "tables": {s.name: list(s.table) for s in self.alive + self.leaving if s.table},
            "num_host_blocks": self.num_host_blocks,
            "host_blocks_used": sorted(b for host in swapped.values() for b in host),
            "host_tables": swapped,
            "running": [s.name for s in self.in_order("running")],
            "waiting": [s.name for s in self.in_order("waiting", "preempted")],
            "status": {s.name: s.status for s in self.alive},
            "num_computed_tokens": {s.name: s.computed for s in self.alive},
        }
