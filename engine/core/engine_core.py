"""Run the engine's loop: plan → execute → update.

There are two loops. The *plain* one plans a step, waits for the worker, books the tokens, and only
then plans the next step. The *overlapped* one plans step k + 1 while the worker computes step k: a
decoding request will get one more token, and only the worker needs to know which, so the plan
needn't wait. A stop token can't be foreseen; it costs one computed token that is discarded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from engine.config import EngineConfig
from engine.core.admission import Admission, RequestError
from engine.core.block_pool import recorded_hashes, root_hash
from engine.core.bookkeeping import Bookkeeping
from engine.core.invariants import check_scheduler
from engine.core.messages import (
    CoreOutput,
    CoreRequest,
    KVShape,
    StepOutput,
    StepPlan,
    StepStats,
)
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.trace import events
from engine.trace.recorder import Recorder


class Executor(Protocol):
    """Compute steps: the ModelRunner, or a test's replacement.

    `launches_ahead` (if absent: False) says that it can also `launch(plan)`, which returns before
    the step is computed.
    """

    kv: KVShape

    def execute(self, plan: StepPlan) -> StepOutput: ...


class Pending(Protocol):
    """Hold a step in flight."""

    def result(self) -> StepOutput: ...


MakeScheduler = Callable[[EngineConfig, KVShape, Recorder], Scheduler]


class EngineCore:
    """Take requests and return outputs, one step at a time. Use it from one thread.

    `scheduler` makes the scheduler: a subclass of it with another policy, or `partial(Scheduler,
    pool=…, costs=…)`.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        recorder: Recorder,
        scheduler: MakeScheduler = Scheduler,
    ):
        self.config = config
        self.executor = executor
        self.recorder = recorder
        self.admission = Admission(config, executor.kv)
        self.scheduler = scheduler(config, executor.kv, recorder)
        self.record = self.scheduler.record.record
        self.clock = recorder.clock  # nanoseconds, as in the record
        self.books = Bookkeeping(self.scheduler, recorder)
        self.overlapped = config.async_scheduling or False
        self.step = self._overlapped_step if self.overlapped else self._plain_step
        self._arrivals = 0
        self._in_flight: deque[tuple[StepPlan, list[Request], int, Pending]] = deque()
        # An executor that waits for its device gets a thread of its own to wait in.
        waits = self.overlapped and not getattr(executor, "launches_ahead", False)
        self._worker = ThreadPoolExecutor(1, "worker") if waits else None

    # ---------------------------------------------------------------------------------- requests in

    def add_request(self, core: CoreRequest, grammar: Any = None) -> None:
        """Queue a request. Raises RequestError if it could never be served.

        Then nothing has changed (rule 7). `grammar`: the request's own, compiled.
        """
        try:
            max_tokens = self.admission.check(core, core.request_id in self.books.groups)
        except RequestError as error:
            self.record(events.RequestRefused(request_id=core.request_id, why=str(error)))
            raise
        self._arrivals += 1
        priority = core.priority if self.config.scheduling_policy == "priority" else 0
        rank = (priority, self._arrivals, 0)
        seed = self.admission.seed(core, self._arrivals)
        request = Request(core, rank, seed, max_tokens, grammar=grammar)
        self.books.groups[core.request_id] = [request]
        if core.trace_full:
            self.recorder.full_requests.add(core.request_id)
        self.scheduler.add(request)
        asked = core.params.max_tokens
        self.record(
            events.RequestQueued(
                request_id=request.id,
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens=max_tokens,
                clamped_from=asked if asked is not None and asked > max_tokens else 0,
                priority=priority,
                rank=list(rank),
                n=core.params.n,
                queue_length=len(self.scheduler.waiting),
                hashes=self.scheduler.kv.prompt_hashes(request) if self.recorder.enabled else "",
                salt=recorded_hashes([root_hash(core.cache_salt)]) if core.cache_salt else "",
            )
        )

    def abort(self, request_id: str, why: str) -> None:
        """End all sequences of a request from outside.

        Unknown or finished ids are ignored: the request may have ended while the order was on its
        way.
        """
        for request in list(self.books.groups.get(request_id, ())):
            self.record(
                events.RequestAborted(
                    request_id=request.id, num_output_tokens=request.num_output_tokens, why=why
                )
            )
            self.books.leave(request, why)

    def finish(self, request_id: str, index: int, stop_reason: str) -> None:
        """End one sequence because its text is complete: a stop string matched, if one is given.

        Ignored if it has already ended.
        """
        why = f"the stop string {stop_reason!r} matched" if stop_reason else "its call is complete"
        for request in list(self.books.groups.get(request_id, ())):
            if request.index == index:
                self.books.finish(request, "stop", stop_reason, why)

    def reset_prefix_cache(self) -> int:
        """Stop later requests from finding a block that is cached now.

        Running requests keep their blocks. Returns how many blocks could be found.
        """
        return self.scheduler.kv.forget_all("the prefix cache was reset")

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    def stats(self) -> StepStats:
        """Return the state after the last step."""
        scheduler, stats = self.scheduler, self.scheduler.stats
        stats.num_running = len(scheduler.running)
        stats.num_waiting = len(scheduler.waiting)
        stats.blocks_used = scheduler.kv.pool.num_used
        stats.blocks_cached_free = scheduler.kv.pool.num_cached_free
        stats.host_blocks_used = scheduler.kv.host_pool.num_used
        stats.told_step, stats.tokens_told = self.books.told_step, self.books.tokens_told
        self.books.verification.count(stats)
        return stats

    def close(self) -> None:
        if self._worker:
            self._worker.shutdown(wait=True)

    # -------------------------------------------------------------------------------- the two loops

    def _plain_step(self) -> list[CoreOutput]:
        started = self.clock()
        plan = self.scheduler.schedule()
        if plan is None:
            return []
        self._set_full_step(plan)
        requests = self.scheduler.planned
        try:
            news = self.books.book(plan, requests, self.executor.execute(plan), started, "plain")
        except BaseException:  # KeyboardInterrupt too
            self.scheduler.break_off(plan)
            raise
        self.recorder.pack()
        return news

    def _overlapped_step(self) -> list[CoreOutput]:
        """Launch the next step, if it can be planned yet; then book the oldest step in flight."""
        started = self.clock()
        # Two are in flight only after a wait that a KeyboardInterrupt ended.
        plan = self.scheduler.schedule() if len(self._in_flight) < 2 else None
        if plan is not None:
            self._set_full_step(plan)
            requests = self.scheduler.planned
            try:
                self._in_flight.append((plan, requests, started, self._launch(plan)))
            except BaseException:
                self.scheduler.break_off(plan)
                raise
            self.recorder.pack()  # while the worker computes
            if len(self._in_flight) == 1:
                return []
        if not self._in_flight:
            return []
        plan, requests, started, result = self._in_flight[0]
        output = result.result()  # the step stays in flight if this is interrupted
        self._in_flight.popleft()
        return self.books.book(plan, requests, output, started, "overlapped")

    def _launch(self, plan: StepPlan) -> Pending:
        if self._worker is not None:
            return self._worker.submit(self.executor.execute, plan)
        return self.executor.launch(plan)  # type: ignore[attr-defined]

    def _set_full_step(self, plan: StepPlan) -> None:
        """Set whether this step's kernels are recorded: they serve every request of the step."""
        full = self.recorder.full_requests
        self.recorder.full_step = bool(full) and any(
            self.recorder.wants_full(row.request_id) for row in plan.rows
        )

    # ----------------------------------------------------------------------------------- invariants

    def check(self) -> None:
        """Raise AssertionError unless the whole state is consistent. For tests, between steps."""
        check_scheduler(self.scheduler)
        living = {r.id for r in [*self.scheduler.running, *self.scheduler.waiting.in_order()]}
        grouped = {r.id for group in self.books.groups.values() for r in group}
        assert living == grouped, "a sequence lives outside its group"
        sequences = [*self.scheduler.running, *self.scheduler.leaving]
        assert len({r.id for r in sequences}) == len(sequences), "two sequences have one name"
