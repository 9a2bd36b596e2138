"""Run the engine's loop: plan → execute → update.

There are two loops. The *plain* one plans a step, waits for the worker, books the tokens, and only
then plans the next step. The *overlapped* one plans step k + 1 while the worker computes step k: a
decoding request will get one more token, and only the worker needs to know which, so the plan
needn't wait. A stop token can't be foreseen; it costs one computed token that is discarded.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from engine.config import EngineConfig
from engine.core.admission import Admission, RequestError
from engine.core.messages import (
    CoreOutput,
    CoreRequest,
    KVShape,
    RowDetail,
    StepOutput,
    StepPlan,
    StepStats,
    TokenLogprobs,
)
from engine.core.request import Request, Status
from engine.core.scheduler import Scheduler
from engine.placeholders import NO_TOKEN
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
        self.overlapped = config.async_scheduling or False
        self.step = self._overlapped_step if self.overlapped else self._plain_step
        self._groups: dict[str, list[Request]] = {}  # request id as sent → its living sequences
        self._arrivals = 0
        self._told_step = 0  # the last step whose outputs were sent
        self._tokens_told = 0  # of that step, see `StepStats.tokens_told`
        self._in_flight: deque[tuple[StepPlan, list[Request], int, Pending]] = deque()
        # An executor that waits for its device gets a thread of its own to wait in.
        waits = self.overlapped and not getattr(executor, "launches_ahead", False)
        self._worker = ThreadPoolExecutor(1, "worker") if waits else None

    # ---------------------------------------------------------------------------------- requests in

    def add_request(self, core: CoreRequest) -> None:
        """Queue a request. Raises RequestError if it could never be served.

        Then nothing has changed (rule 7).
        """
        try:
            max_tokens = self.admission.check(core, core.request_id in self._groups)
        except RequestError as error:
            self.record(events.RequestRefused(request_id=core.request_id, why=str(error)))
            raise
        self._arrivals += 1
        priority = core.priority if self.config.scheduling_policy == "priority" else 0
        rank = (priority, self._arrivals, 0)
        seed = self.admission.seed(core, self._arrivals)
        request = Request(core, rank, seed, max_tokens)
        self._groups[core.request_id] = [request]
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
            )
        )

    def abort(self, request_id: str, why: str) -> None:
        """End all sequences of a request from outside.

        Unknown or finished ids are ignored: the request may have ended while the order was on its
        way.
        """
        for request in list(self._groups.get(request_id, ())):
            self.record(
                events.RequestAborted(
                    request_id=request.id, num_output_tokens=request.num_output_tokens, why=why
                )
            )
            self._leave(request, why)

    def finish(self, request_id: str, index: int, stop_reason: str) -> None:
        """End one sequence because a stop string matched in its text. Ignored if it has already
        ended.
        """
        for request in list(self._groups.get(request_id, ())):
            if request.index == index:
                self._finish(
                    request, "stop", stop_reason, f"the stop string {stop_reason!r} matched"
                )

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
        stats.told_step, stats.tokens_told = self._told_step, self._tokens_told
        return stats

    def close(self) -> None:
        if self._worker:
            self._worker.shutdown(wait=True)

    # -------------------------------------------------------------------------------- the two loops

    def _plain_step(self) -> list[CoreOutput]:
        started = time.perf_counter_ns()
        plan = self.scheduler.schedule()
        if plan is None:
            return []
        self._set_full_step(plan)
        requests = self.scheduler.planned
        news = self._update(plan, requests, self.executor.execute(plan), started)
        self.recorder.pack()
        return news

    def _overlapped_step(self) -> list[CoreOutput]:
        """Launch the next step, if it can be planned yet; then book the oldest step in flight."""
        started = time.perf_counter_ns()
        plan = self.scheduler.schedule()
        if plan is not None:
            self._set_full_step(plan)
            requests = self.scheduler.planned
            self._in_flight.append((plan, requests, started, self._launch(plan)))
            self.recorder.pack()  # while the worker computes
            if len(self._in_flight) == 1:
                return []
        if not self._in_flight:
            return []
        plan, requests, started, result = self._in_flight.popleft()
        return self._update(plan, requests, result.result(), started)

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

    # ----------------------------------------------------------------------------------- tokens out

    def _update(
        self, plan: StepPlan, requests: list[Request], output: StepOutput, started: int
    ) -> list[CoreOutput]:
        """Book the result of a step: append, finish, fork, free. `requests[i]` has row i."""
        update_started = time.perf_counter_ns()
        news: list[CoreOutput] = []
        self._tokens_told = 0
        details, kv = output.details, self.scheduler.kv
        finished = Status.FINISHED  # looked up once, not for every row
        block_size = kv.block_size if kv.caching else sys.maxsize  # of blocks that fill up
        detail = None
        for row, request, tokens in zip(plan.rows, requests, output.tokens, strict=True):
            computed = request.num_computed_tokens = request.num_computed_tokens + row.num_tokens
            if request.status is finished:
                # it ended while this step was in flight: discard its token
                if not request.tokens_in_flight:
                    self._leave(request, "its last step in flight is back")
                continue
            if computed >= (request.num_cached_blocks + 1) * block_size and NO_TOKEN not in tokens:
                kv.cache_full_blocks(request)
            if details:
                detail = details.get(row.request_id)
                self._collect_prompt_logprobs(request, detail)
            if len(tokens) == 1:
                news.append(self._append(request, tokens[0], detail, 0))
            elif tokens:
                for index, sequence in enumerate(self._with_siblings(request, len(tokens))):
                    news.append(self._append(sequence, tokens[index], detail, index))
            elif request.max_tokens == 0 and request.num_computed_tokens == request.num_tokens:
                self._count_prompt(request)
                for index in range(request.core.params.n):
                    news.append(self._last_output(request, "length"))
                    news[-1].index = index
                self._finish(request, "length", "", "max_tokens is 0: only the prompt was wanted")
        self._told_step, self._tokens_told = plan.step, self._tokens_told + len(news)
        num_tokens, num_rows = plan.num_tokens, len(plan.rows)
        self.scheduler.costs.observe_step(num_tokens, output.forward_us)
        now = time.perf_counter_ns()
        ready_ns = update_started - output.done_ns if output.done_ns else 0
        self.record(
            events.StepFinished(
                step=plan.step,
                num_tokens=num_tokens,
                num_decode_tokens=num_rows
                if num_tokens == num_rows
                else sum(row.num_tokens == 1 for row in plan.rows),
                num_sampled=sum(map(len, output.tokens)),
                schedule_us=round(plan.schedule_us, 1),
                prepare_us=round(output.prepare_us, 1),
                forward_us=round(output.forward_us, 1),
                sample_us=round(output.sample_us, 1),
                ready_us=round(ready_ns / 1e3, 1),
                update_us=round((now - update_started) / 1e3, 1),
                total_us=round((now - started) / 1e3, 1),
                loop="overlapped" if self.overlapped else "plain",
            )
        )
        return news

    def _with_siblings(self, request: Request, count: int) -> list[Request]:
        """Return the request, and the siblings that fork from it now.

        Siblings fork when the prompt of a request with n > 1 was just computed.
        """
        family = [request]
        for index in range(1, count):
            rank = (*request.rank[:2], index)
            child = Request(request.core, rank, request.seed + index, request.max_tokens, index)
            self._groups[request.core.request_id].append(child)
            self.scheduler.fork(request, child)
            family.append(child)
        return family

    def _append(
        self, request: Request, token: int, detail: RowDetail | None, index: int
    ) -> CoreOutput:
        """Append one token, and end the sequence if it is the last.

        Order: EOS, stop tokens, length. `NO_TOKEN`: an error.
        """
        if token == NO_TOKEN:
            return self._fail(request)
        token_ids = request.token_ids
        token_ids.append(token)
        num_output_tokens = len(token_ids) - request.num_prompt_tokens
        output = CoreOutput(
            request_id=request.core.request_id,
            index=request.index,
            token_ids=[token],
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
        )
        if detail and detail.logprobs:
            output.logprobs = [detail.logprobs[index]]
        if num_output_tokens == 1:
            self._tell_start(request, output)
            if request.index == 0:
                output.prompt_logprobs = self._prompt_logprobs(request)
                self._count_prompt(request)
        if token in request.end_ids and num_output_tokens > request.core.params.min_tokens:
            output.finish_reason = "stop"
            if token in request.eos_ids:
                self._finish(request, "stop", "", f"token {token} ends a sequence")
            else:
                output.stop_reason = token
                self._finish(request, "stop", str(token), f"token {token} is in stop_token_ids")
        elif num_output_tokens >= request.max_tokens:
            output.finish_reason = "length"
            self._finish(request, "length", "", f"it has all of its {request.max_tokens} tokens")
        return output

    def _fail(self, request: Request) -> CoreOutput:
        """End one sequence whose logits aren't finite.

        Its computed values may be NaN, so its blocks must not be found in the prefix cache.
        """
        position = request.num_computed_tokens
        why = (
            f"the model gave no finite logits for position {position}: most often numbers grew too"
            " large for float16, or the checkpoint is broken"
        )
        output = self._last_output(request, "error")
        output.error = f"{why[0].upper()}{why[1:]}. Try --dtype bfloat16 or float32."
        self.scheduler.kv.forget(request, f"{request.id} failed, what it computed may be NaN")
        self._finish(request, "error", "", why)
        return output

    def _last_output(self, request: Request, finish_reason: str) -> CoreOutput:
        """Make the output of a sequence that ends without a token."""
        output = CoreOutput(
            request_id=request.core.request_id,
            index=request.index,
            finish_reason=finish_reason,
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
        )
        if not request.num_output_tokens:
            self._tell_start(request, output)
        return output

    def _tell_start(self, request: Request, output: CoreOutput) -> None:
        """Add what only the first output of a sequence has."""
        output.queued_ns = request.first_admitted_ns - request.queued_ns
        output.first_scheduled_ns = request.first_admitted_ns
        if request.max_tokens == 0:
            output.prompt_logprobs = self._prompt_logprobs(request)

    def _collect_prompt_logprobs(self, request: Request, detail: RowDetail | None) -> None:
        if detail is None or detail.prompt_logprobs is None or request.num_output_tokens:
            return
        request.prompt_logprobs.extend(detail.prompt_logprobs)

    @staticmethod
    def _prompt_logprobs(request: Request) -> list[TokenLogprobs | None] | None:
        """Return the log-probabilities of the whole prompt, if asked for; the first token has
        none."""
        if request.core.params.prompt_logprobs is None:
            return None
        return [None, *request.prompt_logprobs]

    def _count_prompt(self, request: Request) -> None:
        """Count a prompt's computed tokens once, with the step that computed the last of them."""
        self._tokens_told += request.num_prompt_tokens - request.num_cached_tokens

    def _finish(self, request: Request, reason: str, stop_reason: str, why: str) -> None:
        now = time.monotonic_ns()
        self.record(
            events.RequestFinished(
                request_id=request.id,
                reason=reason,
                stop_reason=stop_reason,
                num_prompt_tokens=request.num_prompt_tokens,
                num_output_tokens=request.num_output_tokens,
                num_cached_tokens=request.num_cached_tokens,
                num_preemptions=request.num_preemptions,
                queued_ms=round((request.first_admitted_ns - request.queued_ns) / 1e6, 3),
                running_ms=round((now - request.first_admitted_ns) / 1e6, 3),
                why=why,
            )
        )
        self._leave(request, "finished")

    def _leave(self, request: Request, why: str) -> None:
        """Remove an ended sequence: from the queues now, from the pool once no step in flight uses
        it.
        """
        self.scheduler.release(request, why)
        siblings = self._groups.get(request.core.request_id)
        if siblings is not None and request in siblings:
            siblings.remove(request)
            if not siblings:
                del self._groups[request.core.request_id]
                self.recorder.full_requests.discard(request.core.request_id)

    # ----------------------------------------------------------------------------------- invariants

    def check(self) -> None:
        """Raise AssertionError unless the whole state is consistent. For tests, between steps."""
        self.scheduler.check()
        living = {r.id for r in [*self.scheduler.running, *self.scheduler.waiting.in_order()]}
        grouped = {r.id for group in self._groups.values() for r in group}
        assert living == grouped, "a sequence lives outside its group"
        sequences = [*self.scheduler.running, *self.scheduler.leaving]
        assert len({r.id for r in sequences}) == len(sequences), "two sequences have one name"
