"""Book what steps computed: append tokens, end sequences, fork siblings."""

from __future__ import annotations

import sys

from engine.core.messages import CoreOutput, RowDetail, StepOutput, StepPlan, TokenLogprobs
from engine.core.request import Request, Status
from engine.core.scheduler import Scheduler
from engine.core.verification import Verification
from engine.placeholders import NO_TOKEN
from engine.trace import events
from engine.trace.recorder import Recorder


class Bookkeeping:
    """Own the living sequences of every request, and what they get from each step."""

    def __init__(self, scheduler: Scheduler, recorder: Recorder) -> None:
        self.scheduler = scheduler
        self.recorder = recorder
        self.record = scheduler.record.record
        self.clock = recorder.clock
        self.groups: dict[str, list[Request]] = {}  # request id as sent → its living sequences
        self.told_step = 0  # the last step whose outputs were sent
        self.tokens_told = 0  # of that step, see `StepStats.tokens_told`
        self._num_without = 0  # outputs of the step that is booked which have no token
        self.verification = Verification(scheduler)

    def book(
        self, plan: StepPlan, requests: list[Request], output: StepOutput, started: int, loop: str
    ) -> list[CoreOutput]:
        """Book the result of a step: append, finish, fork, free.

        `requests[i]` has row i of the plan; rows of proposals follow. `started`: when the step was,
        by the record's clock.
        """
        update_started = self.clock()
        news: list[CoreOutput] = []
        self.tokens_told = self._num_without = 0
        details, kv = output.details, self.scheduler.kv
        finished = Status.FINISHED  # looked up once, not for every row
        block_size = kv.block_size if kv.caching else sys.maxsize  # of blocks that fill up
        detail = None
        rows, drawn, verified = plan.rows, output.tokens, None
        if plan.proposed:
            rows, drawn = rows[: len(requests)], drawn[: len(requests)]
            verified = self.verification.verify(plan, requests, output)
        for row, request, tokens in zip(rows, requests, drawn, strict=True):
            computed = request.num_computed_tokens = request.num_computed_tokens + row.num_tokens
            if request.status is finished:
                # it ended while this step was in flight: discard its token
                if not request.tokens_in_flight:
                    self.leave(request, "its last step in flight is back")
                continue
            if verified and request in verified:
                news.append(self._append_verified(request, verified[request], details))
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
                self.finish(request, "length", "", "max_tokens is 0: only the prompt was wanted")
        accepted = sum(self.verification.accepted) if verified else 0
        self.told_step = plan.step
        self.tokens_told += len(news) - self._num_without + accepted
        num_tokens, num_rows = plan.num_tokens, len(plan.rows)
        self.scheduler.costs.observe_step(num_tokens, output.forward_us)
        for pass_rows, pass_us in output.draft_passes:
            self.scheduler.speculator.passes.observe(pass_rows, pass_us)  # type: ignore[union-attr]
        now = self.clock()
        if self.scheduler.speculator is not None and num_tokens == num_rows:
            took_us = output.prepare_us + output.forward_us + output.sample_us
            if loop == "plain" or plan.proposed:  # else the worker computes meanwhile
                took_us += plan.schedule_us + (now - update_started) / 1e3
            self.scheduler.speculator.costs.observe(num_rows, took_us)
        ready_ns = update_started - output.done_ns if output.done_ns else 0
        self.record(
            events.StepFinished(
                step=plan.step,
                num_tokens=num_tokens,
                num_decode_tokens=num_rows
                if num_tokens == num_rows
                else sum(row.num_tokens == 1 for row in plan.rows),
                num_sampled=sum(map(len, drawn)) + accepted,
                schedule_us=round(plan.schedule_us, 1),
                prepare_us=round(output.prepare_us, 1),
                draft_us=round(output.draft_us, 1),
                forward_us=round(output.forward_us, 1),
                joined_us=round(output.joined_us, 1),
                sample_us=round(output.sample_us, 1),
                record_us=round(output.record_us, 1),
                ready_us=round(ready_ns / 1e3, 1),
                update_us=round((now - update_started) / 1e3, 1),
                total_us=round((now - started) / 1e3, 1),
                loop=loop,
            )
        )
        return news

    def _append_verified(
        self, request: Request, tokens: list[int], details: dict[str, RowDetail]
    ) -> CoreOutput:
        """Append the tokens that a step with proposals drew; only the last may end the sequence."""
        request.token_ids += tokens[:-1]
        if NO_TOKEN not in tokens:
            self.scheduler.kv.cache_full_blocks(request)
        detail = details.get(request.id)
        output = self._append(request, tokens[-1], detail, len(tokens) - 1)
        output.token_ids = tokens[:-1] + output.token_ids
        if detail is not None and detail.logprobs:
            output.logprobs = detail.logprobs[: len(output.token_ids)]
        return output

    def _with_siblings(self, request: Request, count: int) -> list[Request]:
        """Return the request, and the siblings that fork from it now.

        Siblings fork when the prompt of a request with n > 1 was just computed.
        """
        family = [request]
        for index in range(1, count):
            rank = (*request.rank[:2], index)
            seed, most = request.seed + index, request.max_tokens
            child = Request(request.core, rank, seed, most, index, request.grammar)
            self.groups[request.core.request_id].append(child)
            self.scheduler.fork(request, child)
            family.append(child)
        return family

    def _append(
        self, request: Request, token: int, detail: RowDetail | None, index: int
    ) -> CoreOutput:
        """Append one token, and end the sequence if it is the last.

        Order: EOS, stop tokens, the grammar's end, length. `NO_TOKEN`: an error.
        """
        if token == NO_TOKEN:
            return self._fail(request, detail)
        if request.grammar is not None:
            self.scheduler.proposals.set_forced(request, [] if detail is None else detail.forced)
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
                self.finish(request, "stop", "", f"token {token} ends a sequence")
            else:
                output.stop_reason = token
                self.finish(request, "stop", str(token), f"token {token} is in stop_token_ids")
        elif detail and detail.complete and detail.complete[index]:
            output.finish_reason = "stop"
            output.keeps_last = token not in request.end_ids
            self.finish(request, "stop", "", "the grammar's text is complete: nothing may follow")
        elif num_output_tokens >= request.max_tokens:
            output.finish_reason = "length"
            self.finish(request, "length", "", f"it has all of its {request.max_tokens} tokens")
        return output

    def _fail(self, request: Request, detail: RowDetail | None) -> CoreOutput:
        """End one sequence for which nothing could be drawn.

        If its logits aren't finite, its computed values may be NaN, so its blocks must not be found
        in the prefix cache. A form that failed says nothing about them: others may share them.
        """
        position = request.num_computed_tokens
        output = self._last_output(request, "error")
        if detail is not None and detail.failure:
            why = f"no token could be drawn for position {position}: {detail.failure}"
            advice = " Send a simpler form." if detail.failed_param == "structured_outputs" else ""
            output.error_param = detail.failed_param
        else:
            why = (
                f"the model gave no finite logits for position {position}: most often numbers grew"
                " too large for float16, or the checkpoint is broken"
            )
            advice = " Try --dtype bfloat16 or float32."
            self.scheduler.kv.forget(request, f"{request.id} failed, what it computed may be NaN")
        output.error = f"{why[0].upper()}{why[1:]}.{advice}"
        self.finish(request, "error", "", why)
        return output

    def _last_output(self, request: Request, finish_reason: str) -> CoreOutput:
        """Make the output of a sequence that ends without a token."""
        self._num_without += 1
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
        self.tokens_told += request.num_prompt_tokens - request.num_cached_tokens

    def finish(self, request: Request, reason: str, stop_reason: str, why: str) -> None:
        now = self.clock()
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
                hashes=self.scheduler.kv.output_hashes(request) if self.recorder.enabled else "",
                why=why,
            )
        )
        self.leave(request, "finished")

    def leave(self, request: Request, why: str) -> None:
        """Remove an ended sequence: from the queues now, from the pool once no step in flight uses
        it.
        """
        self.scheduler.release(request, why)
        siblings = self.groups.get(request.core.request_id)
        if siblings is not None and request in siblings:
            siblings.remove(request)
            if not siblings:
                del self.groups[request.core.request_id]
                self.recorder.full_requests.discard(request.core.request_id)
