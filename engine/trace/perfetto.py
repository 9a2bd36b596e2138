"""Write the record as Chrome Trace Event JSON, for https://ui.perfetto.dev and chrome://tracing.

    process "engine"    steps (schedule, prepare, forward, sample, update nest in each) · kernels
                        counters: blocks, requests, tokens of a step
    process "requests"  one track a sequence: waiting, running with its share of each step,
                            preempted
    arrows              from a request's share of a step to the forward pass that computed it

Format: "Trace Event Format", Google (2016): `ph` X = slice (ts, dur in µs), C = counter, s/f =
flow, i = instant, M = name. Durations are the recorded ones. A step ends at its `step.finished`,
and its parts are laid out from there: planning at its start, booking at its end, and before
booking, by as long as the tokens waited, the worker's parts back to back. The worker computes one
step after another, and a sequence's share ends when its token is drawn: the overlapped loop books
the token while the worker computes the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.trace import events as ev
from engine.trace.annotate import describe
from engine.trace.context import Context
from engine.trace.events import Event, kind

ENGINE, REQUESTS = 1, 2  # process numbers
# Perfetto treats a track with its process's number as the main thread and puts it first.
STEPS, OVERLAPPED_STEPS, KERNELS = 11, 12, 13  # tracks of the engine
FIRST_REQUEST = 101  # track of the first request; later requests follow

_INSTANTS = (
    ev.RequestWaiting, ev.RequestPreempted, ev.RequestFinished, ev.RequestAborted,
    ev.RequestRefused, ev.BlockCopied, ev.SampleDrawn, ev.TextEmitted, ev.TextHeldBack,
    ev.StopMatched,
)  # fmt: skip


def to_perfetto(events: Iterable[Event]) -> bytes:
    """Convert the whole record to one JSON document."""
    trace = _Trace()
    for event in events:
        trace.add(event)
    return msgspec.json.encode({"traceEvents": trace.finish(), "displayTimeUnit": "ms"})


class _Trace:
    """Hold the trace events so far, and the slices that are still open."""

    def __init__(self) -> None:
        self._out: list[dict[str, Any]] = []
        self._context = Context()
        self._start_ns = 0
        self._now = 0.0  # µs since the first event
        self._tracks: dict[str, int] = {}  # sequence → track
        self._open: dict[str, tuple[str, float]] = {}  # sequence → (state, since)
        self._ends: dict[tuple[int, int], float] = {}  # (process, track) → end of its last slice
        self._ended: dict[str, float] = {}  # sequence → its end, during a step in flight
        self._verified: dict[str, ev.SpecVerified] = {}  # of the step in flight
        self._overlapped = False
        self._swapped = False  # some block was in host memory
        self._drawn = 0.0  # when the previous step's tokens were drawn
        self._flows = 0
        self._name_track(ENGINE, 0, "process_name", "engine")
        self._name_track(REQUESTS, 0, "process_name", "requests")

    def add(self, event: Event) -> None:
        self._context.see(event)
        if isinstance(event, ev.EngineSnapshot):  # who ran and waited at the record's start
            for standing in event.standing:
                self._show(standing)
        else:
            self._show(event)

    def _show(self, event: Event) -> None:
        self._start_ns = self._start_ns or event.ts_ns
        self._now = (event.ts_ns - self._start_ns) / 1e3
        if isinstance(event, ev.RequestQueued):
            self._change(event.request_id, "waiting")
        elif isinstance(event, ev.RequestAdmitted | ev.RequestResumed | ev.RequestForked):
            self._change(event.request_id, "running")
        elif isinstance(event, ev.RequestPreempted):
            self._change(event.request_id, f"preempted ({event.mode})")
        elif isinstance(event, ev.StepPlanned):
            self._count(event)
        elif isinstance(event, ev.SpecVerified):
            self._verified[event.request_id] = event
        elif isinstance(event, ev.StepFinished):
            self._step(event)
        elif isinstance(event, ev.KernelLaunched):
            self._kernel(event)
        elif isinstance(event, ev.EngineWarning | ev.EngineFailed | ev.GraphReplayed):
            self._instant(ENGINE, STEPS, event)
        if isinstance(event, _INSTANTS) and event.request_id:
            self._instant(REQUESTS, self._track(event.request_id), event)
        if isinstance(event, ev.RequestFinished | ev.RequestAborted | ev.RequestRefused):
            self._end(event.request_id)

    def finish(self) -> list[dict[str, Any]]:
        """Close the open slices, and name the tracks."""
        for name in list(self._open):
            self._change(name, "", self._ended.get(name))
        used = {(out["pid"], out["tid"]) for out in self._out}
        for track, name in (
            (STEPS, "steps"), (OVERLAPPED_STEPS, "steps, overlapped"), (KERNELS, "kernels")
        ):  # fmt: skip
            if (ENGINE, track) in used:
                self._name_track(ENGINE, track, "thread_name", name)
        return self._out

    # ------------------------------------------------------------------------------ requests

    def _track(self, name: str) -> int:
        if name not in self._tracks:
            self._tracks[name] = FIRST_REQUEST + len(self._tracks)
            self._name_track(REQUESTS, self._tracks[name], "thread_name", self._context.name(name))
        return self._tracks[name]

    def _change(self, name: str, state: str, at: float | None = None) -> None:
        """Enter a state, and complete the slice of the one before."""
        if name in self._open:
            before, since = self._open.pop(name)
            end = self._now if at is None else at
            self._slice(REQUESTS, self._track(name), before, since, end, {"request_id": name})
        if state:
            self._open[name] = (state, self._now)

    def _end(self, name: str) -> None:
        """End the sequence. Its last step is booked a little later, and still has a share to
        show."""
        if self._under_way(name):
            self._ended[name] = self._now
        else:
            self._change(name, "")

    def _settle(self, rows: list[ev.StepRow]) -> None:
        """Close the sequences that ended in the step just booked."""
        for row in rows:
            if row.request_id in self._ended and not self._under_way(row.request_id):
                self._change(row.request_id, "", self._ended.pop(row.request_id))

    def _under_way(self, name: str) -> bool:
        plans = self._context.plans.values()
        return any(row.request_id == name for plan in plans for row in plan.rows)

    def _share(self, row: ev.StepRow, step: int, start: float, forward: float, end: float) -> None:
        """Add what a step computed for one sequence, with an arrow to the step's forward pass."""
        state, since = self._open.get(row.request_id, ("", 0.0))
        if state != "running":
            return
        track = self._track(row.request_id)
        # Steps of the overlapped loop overlap in time: a share begins where the previous one ends.
        start = max(start, since, self._ends.get((REQUESTS, track), 0.0))
        end = min(end, self._ended.get(row.request_id, end))
        if start >= end:
            return
        self._ends[REQUESTS, track] = end
        what = "decode" if row.num_tokens == 1 else f"{row.num_tokens} tokens"
        args = {"step": step, "start": row.start, "num_tokens": row.num_tokens}
        verified = self._verified.pop(row.request_id, None)
        if verified is not None:
            what = f"decode {1 + verified.num_accepted}"
            args["proposals"], args["right"] = verified.num_proposed, verified.num_accepted
        self._slice(REQUESTS, track, what, start, end, args)
        self._flows += 1
        flow = {"name": "computed in", "cat": "step", "id": self._flows}
        here = {"pid": REQUESTS, "tid": track, "ts": round(start, 3)}
        there = {
            "pid": ENGINE,
            "tid": self._step_track(step),
            "ts": round(max(start, forward), 3),
        }
        self._out.append({"ph": "s", **here, **flow})
        self._out.append({"ph": "f", "bp": "e", **there, **flow})

    # ------------------------------------------------------------------------------ steps

    def _step_track(self, step: int) -> int:
        return OVERLAPPED_STEPS if self._overlapped and step % 2 else STEPS

    def _step(self, event: ev.StepFinished) -> None:
        # Two steps of the overlapped loop are in flight at once, so they alternate between two
        # tracks.
        self._overlapped = event.loop == "overlapped"
        rows = self._context.finish_step(event.step)
        track = self._step_track(event.step)
        end = self._now
        start = max(end - event.total_us, self._ends.get((ENGINE, track), 0.0), 0.0)
        args = {
            "num_tokens": event.num_tokens,
            "num_decode_tokens": event.num_decode_tokens,
            "num_sampled": event.num_sampled,
        }
        self._slice(ENGINE, track, f"step {event.step}", start, end, args)
        planned = min(start + event.schedule_us, end)
        self._slice(ENGINE, track, "schedule", start, planned)
        updated = max(end - event.update_us, planned)
        self._slice(ENGINE, track, "update", updated, end)
        # The previous step's tokens were drawn before this step's part of the worker began.
        earliest = max(planned, min(self._drawn, updated))
        drawn = part_end = max(updated - event.ready_us, earliest)
        starts: dict[str, float] = {}
        for name, us in (
            *([("record", event.record_us)] if event.record_us else []),
            ("sample", event.sample_us),
            ("forward", event.forward_us),
            *([("draft", event.draft_us)] if event.draft_us else []),
            ("prepare", event.prepare_us),
        ):
            starts[name] = max(part_end - us, earliest)
            self._slice(ENGINE, track, name, starts[name], part_end)
            part_end = starts[name]
        self._ends[ENGINE, track] = end
        self._drawn = drawn
        for row in rows:
            self._share(row, event.step, start, starts["forward"], self._drawn)
        self._settle(rows)

    def _count(self, event: ev.StepPlanned) -> None:
        blocks = {
            "used": event.blocks_used,
            "cached and free": event.blocks_cached_free,
            "empty": event.blocks_free,
        }
        self._counter("KV blocks", blocks)
        self._swapped |= event.host_blocks_used > 0
        if self._swapped:
            self._counter("host blocks", {"used": event.host_blocks_used})
        self._counter("requests", {"running": event.num_running, "waiting": event.num_waiting})
        self._counter("tokens of a step", {"planned": event.budget_used})

    def _kernel(self, event: ev.KernelLaunched) -> None:
        fields = msgspec.to_builtins(event)
        args = {key: fields[key] for key in fields if key not in ("kind", "seq", "ts_ns", "src")}
        # Kernels of one stream run one after another: one launched early waits for those before it.
        start = max(self._now, self._ends.get((ENGINE, KERNELS), 0.0))
        end = start + event.duration_us
        self._slice(ENGINE, KERNELS, event.name, start, end, args)
        self._ends[ENGINE, KERNELS] = end

    # ------------------------------------------------------------------------------ the format

    def _slice(
        self,
        pid: int,
        tid: int,
        name: str,
        start: float,
        end: float,
        args: dict[str, Any] | None = None,
    ) -> None:
        start, end = round(start, 3), round(end, 3)  # rounded first, so that ends still nest
        at = {"pid": pid, "tid": tid, "ts": start, "dur": round(max(0.0, end - start), 3)}
        self._out.append({"ph": "X", "name": name, **at, "args": args or {}})

    def _instant(self, pid: int, tid: int, event: Event) -> None:
        args = {"text": describe(event, self._context)}
        at = {"pid": pid, "tid": tid, "ts": round(self._now, 3)}
        self._out.append({"ph": "i", "s": "t", "name": kind(event), "args": args, **at})

    def _counter(self, name: str, values: dict[str, int]) -> None:
        at = {"pid": ENGINE, "tid": 0, "ts": round(self._now, 3)}
        self._out.append({"ph": "C", "name": name, "args": values, **at})

    def _name_track(self, pid: int, tid: int, what: str, name: str) -> None:
        self._out.append({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": {"name": name}})
