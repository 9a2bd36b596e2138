"""Tell what vLLM's scheduler decided, in events of this engine's record.

Everything comes from what vLLM passes on: requests, SchedulerOutput, the list of blocks. What it
doesn't say is left out: why something waits, for whom one was preempted, how long the model took.
Its objects are taken as they are (no part of vLLM is imported here), so a test can make its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.state import EngineState, ReplayError

TOLD = (
    "This record comes from vLLM {version}: it tells who ran on which blocks, and no reasons. Its"
    " block 0 is never used, so block n here is its block n + 1. A step's time in the model is all"
    " that lies between its planning and its booking."
)


@dataclass
class Seen:
    """Hold what is known of a living request, beside its blocks."""

    request: Any
    queued_ns: int
    admitted_ns: int = 0
    preempted_ns: int = 0
    num_cached: int = 0


@dataclass
class Flying:
    """Hold a step that was planned and hasn't come back."""

    output: Any
    step: int
    started_ns: int
    planned_ns: int
    num_decode: int
    num_sampled: int


class Watch:
    """Record what a scheduler of vLLM does. `record` gets each event, `at(step)` the step before.

    `blocks` are the pool's, whose hashes say what can be found again; None if the model's cache
    isn't one table of blocks for each request: then no block is told.
    """

    def __init__(
        self,
        record: Callable[[Event], None],
        at: Callable[[int], None],
        blocks: list[Any] | None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.state = EngineState()  # of the events so far: tables and hashes are looked up in it
        self.step = 0
        self._record = record
        self._at = at
        self._blocks = blocks
        self._clock = clock
        self._seen: dict[str, Seen] = {}
        self._arrivals = 0
        self._flying: list[Flying] = []

    def begin(
        self,
        version: str,
        config: dict[str, Any],
        kv: ev.EngineKvSized,
        model: ev.EngineModelLoaded,
    ) -> None:
        """Tell the engine; `kv` counts vLLM's blocks, with its block 0."""
        self._tell(ev.EngineStarted(version=f"vLLM {version}", config=config))
        self._tell(model)
        self._tell(ev.EngineWarning(message=TOLD.format(version=version)))
        if self._blocks is not None:
            kv.num_blocks -= 1
            kv.ordered = False
            self._tell(kv)

    # ------------------------------------------------------------------------------ requests

    def queued(self, request: Any, num_waiting: int, by_priority: bool) -> None:
        """Tell that a request came; `num_waiting` counts it, too."""
        if request.request_id in self._seen:
            return  # more input for a request that is there
        self._seen[request.request_id] = Seen(request, self._clock())
        self._arrivals += 1
        self._tell(
            ev.RequestQueued(
                request_id=request.request_id,
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens=request.max_tokens,
                priority=request.priority,
                rank=[request.priority if by_priority else 0, self._arrivals],
                queue_length=num_waiting,
            )
        )

    def aborted(self, requests: Iterable[Any]) -> None:
        """Tell which requests were ended from outside."""
        for request in requests:
            if self._seen.pop(request.request_id, None) is not None:
                self._tell(
                    ev.RequestAborted(
                        request_id=request.request_id,
                        num_output_tokens=request.num_output_tokens,
                    )
                )
                self._freed(request.request_id)

    # ------------------------------------------------------------------------------ a step

    def planned(
        self, output: Any, started_ns: int, running: int, waiting: int, budget: int, free: int
    ) -> None:
        """Tell what `schedule()` returned. `free`: of vLLM's blocks, cached ones included."""
        preempted = [name for name in output.preempted_req_ids or () if name in self._seen]
        if not output.total_num_scheduled_tokens and not preempted:
            return
        self.step += 1
        self._at(self.step)
        for name in sorted(preempted, key=self._rank, reverse=True):
            self._preempted(name)
        if preempted:  # blocks may have been taken and given back within the step
            self.forgotten()
        starts = self._continued(output.scheduled_cached_reqs)
        for new in output.scheduled_new_reqs:
            self._admitted(new.req_id, new.block_ids, new.num_computed_tokens)
            starts[new.req_id] = new.num_computed_tokens
        rows = [
            ev.StepRow(name, starts.get(name, 0), count, self._samples(name))
            for name, count in output.num_scheduled_tokens.items()
        ]
        for row in rows:
            self._cached(row.request_id)
        kept = sum(not self.state.references[block] for block in self.state.hashes)
        planned_ns = self._clock()
        self._tell(
            ev.StepPlanned(
                rows=rows,
                budget=budget,
                budget_used=output.total_num_scheduled_tokens,
                num_running=running,
                num_waiting=waiting,
                blocks_used=max(0, self.state.num_blocks - free),
                blocks_cached_free=min(kept, free),
                blocks_free=max(0, free - kept),
                schedule_us=(planned_ns - started_ns) / 1e3,
            )
        )
        decoding = sum(row.num_tokens == 1 and row.samples > 0 for row in rows)
        sampled = sum(row.samples for row in rows)
        self._flying.append(Flying(output, self.step, started_ns, planned_ns, decoding, sampled))

    def finished(self, output: Any, began_ns: int) -> None:
        """Tell that the tokens of a planned step were booked, which began at `began_ns`."""
        flying = next((one for one in self._flying if one.output is output), None)
        if flying is None:
            return
        overlapped = len(self._flying) > 1
        self._flying.remove(flying)
        self._at(flying.step)
        now = self._clock()
        for name in output.num_scheduled_tokens:
            if name in self._seen:
                self._cached(name)
        self._tell(
            ev.StepFinished(
                step=flying.step,
                num_tokens=output.total_num_scheduled_tokens,
                num_decode_tokens=flying.num_decode,
                num_sampled=flying.num_sampled,
                schedule_us=(flying.planned_ns - flying.started_ns) / 1e3,
                forward_us=max(0, began_ns - flying.planned_ns) / 1e3,
                update_us=(now - began_ns) / 1e3,
                total_us=(now - flying.started_ns) / 1e3,
                loop="overlapped" if overlapped else "plain",
            )
        )
        for name in output.num_scheduled_tokens:
            seen = self._seen.get(name)
            if seen is not None and seen.request.is_finished():
                self._ended(name, seen)
        self._at(self.step)

    def forgotten(self) -> None:
        """Tell which blocks can't be found any more, after many may have been forgotten."""
        for block, known in list(self.state.hashes.items()):
            if self._hash_of(block) != known:
                self._evicted(block)

    # ------------------------------------------------------------------------------ details

    def _tell(self, event: Event) -> None:
        """Record an event that folds; from one that doesn't follow on, blocks are told no more."""
        event.step = event.step or self.step
        try:
            self.state.fold(event)
        except ReplayError as problem:
            self._blocks = None
            event = ev.EngineWarning(message=f"From here on blocks aren't told: {problem}")
        self._record(event)

    def _rank(self, name: str) -> tuple[int, ...]:
        return self.state.sequences[name].rank

    def _samples(self, name: str) -> int:
        """Return whether this step draws a token: the row reaches the last one that is known."""
        seen = self._seen.get(name)
        return int(seen is not None and not seen.request.is_prefill_chunk)

    def _preempted(self, name: str) -> None:
        seen = self._seen[name]
        seen.preempted_ns = self._clock()
        self._tell(
            ev.RequestPreempted(
                request_id=name,
                mode="recompute",
                num_blocks=len(self.state.tables.get(name, ())),
                num_computed_tokens=self.state.sequences[name].num_computed_tokens,
            )
        )
        self._freed(name)

    def _continued(self, cached: Any) -> dict[str, int]:
        """Tell of requests that ran before; return where each goes on."""
        starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                self._admitted(name, blocks, starts[name])
            elif blocks is not None:
                self._allocated(name, blocks[0])
        return starts

    def _admitted(self, name: str, blocks: Any, num_cached: int) -> None:
        """Tell that a request begins to run, or runs again: its first blocks were found."""
        seen, now = self._seen[name], self._clock()
        again = bool(seen.admitted_ns)
        told = {
            "request_id": name,
            "waited_us": (now - (seen.preempted_ns or seen.queued_ns)) / 1e3,
            "num_tokens": seen.request.num_tokens,
            "num_cached_tokens": num_cached,
        }
        if again:
            self._tell(ev.RequestResumed(mode="recompute", **told))
        else:
            seen.admitted_ns, seen.num_cached = now, num_cached
            self._tell(ev.RequestAdmitted(**told))
        if self._blocks is None or blocks is None:
            return
        found = num_cached // self.state.block_size
        shared = [block - 1 for block in blocks[0][:found]]
        if shared:
            self._tell(ev.BlockShared(request_id=name, blocks=shared, num_tokens=num_cached))
        self._allocated(name, blocks[0][found:])

    def _allocated(self, name: str, blocks: list[int]) -> None:
        if self._blocks is None or not blocks:
            return
        fresh = [block - 1 for block in blocks]
        for block in fresh:
            if block in self.state.hashes:
                self._evicted(block)
        index = len(self.state.tables.get(name, ()))
        self._tell(ev.BlockAllocated(request_id=name, blocks=fresh, index=index))

    def _evicted(self, block: int) -> None:
        self._tell(ev.BlockEvicted(block=block, hash=self.state.hashes[block]))

    def _freed(self, name: str) -> None:
        table = self.state.tables.get(name)
        if table and self._blocks is not None:
            self._tell(ev.BlockFreed(request_id=name, blocks=table[::-1]))

    def _hash_of(self, block: int) -> str | None:
        """Return the hash that vLLM has for a block, shortened; None if it can't be found."""
        found = self._blocks[block + 1].block_hash if self._blocks is not None else None
        return found[:8].hex() if found is not None else None

    def _cached(self, name: str) -> None:
        """Tell which blocks of a request can be found since it was looked at last."""
        if self._blocks is None:
            return
        new: dict[str, int] = {}
        for block in reversed(self.state.tables.get(name, ())):
            if block in self.state.hashes:
                break
            found = self._hash_of(block)
            if found is not None and found not in self.state.cached:
                new[found] = block
        if new:
            blocks, hashes = list(new.values())[::-1], list(new)[::-1]
            self._tell(ev.BlockCached(request_id=name, blocks=blocks, hashes=hashes))

    def _ended(self, name: str, seen: Seen) -> None:
        del self._seen[name]
        request, now = seen.request, self._clock()
        stop = request.stop_reason
        self._tell(
            ev.RequestFinished(
                request_id=name,
                reason=str(request.get_finished_reason()),
                stop_reason="" if stop is None else str(stop),
                num_prompt_tokens=request.num_prompt_tokens,
                num_output_tokens=request.num_output_tokens,
                num_cached_tokens=seen.num_cached,
                num_preemptions=request.num_preemptions,
                queued_ms=(seen.admitted_ns - seen.queued_ns) / 1e6,
                running_ms=(now - seen.admitted_ns) / 1e6,
            )
        )
        self._freed(name)
