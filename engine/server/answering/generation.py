"""Run one HTTP request in the engine, from its prompts to the last token of each answer.

Completions and chat differ in how a prompt is made and how an answer is written. What they share is
here: ids, queue limit, tokenizing, the engine, text, metrics, and releasing all of it.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack

import msgspec
from fastapi import Request

from engine.core.messages import CoreOutput, CoreRequest
from engine.sampling_params import ParameterError, SamplingParams
from engine.server.answering.protocol import GenerationRequest
from engine.server.http.errors import ApiError, bad_request
from engine.server.link.mailbox import Mailbox, OwnReader, Taker
from engine.server.link.open_requests import IdInUse, OpenRequest
from engine.server.service import Service
from engine.server.telemetry.metrics import RequestClock
from engine.text.errors import TextError
from engine.text.messages.rules import MessageRules
from engine.text.request_text import RequestText, TextDelta, TokenUsage
from engine.trace.events import RequestAnswered, RequestRefused
from engine.trace.sequences import prompt_name

FORM = "structured_outputs"
AT_ONCE = 32  # prompts or pieces handled before other requests get a turn
TRACE_PARENT, TRACE_STATE = "traceparent", "tracestate"
MOST_TRACE_CONTEXT = 512  # characters of each: what W3C wants to be passed on at least
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class SentPrompt:
    """Hold one prompt of a generation, from when it is sent to the core."""

    def __init__(self, place: int, entry: OpenRequest, text: RequestText, clock: RequestClock):
        self.place = place
        self.entry = entry
        self.text = text
        self.clock = clock
        self.gathered: dict[int, TextDelta] = {}  # by sequence: new, but not to be told yet
        self.complete_ns = 0  # when its last text was known, CLOCK_MONOTONIC


class Generation:
    """Hold the prompts of one HTTP request.

    `close()` must be called at its end, however it ends.
    """

    def __init__(self, service: Service):
        self.service = service
        self.text = service.ready_text()
        self.id = ""
        self.requests: list[RequestText] = []  # one for each prompt; they grow as tokens come
        self.interval = 1  # new tokens of a sequence that are told together
        self.finished = False  # every answer is complete
        self._mailbox = Mailbox()
        self._entries: list[OpenRequest] = []  # one for each prompt
        self._parts: dict[str, SentPrompt] = {}  # by request id
        self._unanswered: set[str] = set()  # requests in the core that have more to come
        self._received: set[str] = set()  # ids in the record whose end nobody else would record
        self._closed = False
        self._form = ""  # the field of the body that holds the form of the text
        # Only the engine knows the ids of all processes: with a mark that no client can choose, it
        # never finds a header's id in use.
        several = service.config.api_server_count > 1
        self._mark = f".p{service.number}" if several else ""
        service.open.add(self)

    async def start(
        self,
        http: Request,
        body: GenerationRequest,
        prompts: Sequence[str | list[int]],
        prefix: str,
        add_special_tokens: bool,
    ) -> None:
        """Check, tokenize and send the prompts.

        Raises `ApiError`, `ParameterError`, `TextError`.
        """
        ignored = body.check()
        self.interval = self.service.config.stream_interval if body.stream else 1
        body.take_defaults(self.service.defaults.sampling)
        params = body.sampling_params()  # finds wrong ones before anything else is done
        if body.num_logprobs is not None:
            self.text.input.check_logprobs(body.LOGPROBS, body.num_logprobs)
        rules = body.message_rules(self.text.formats, prompts)
        self._form = body.form[1] or ("tools" if rules is not None and rules.must_call else "")
        if rules is not None:  # marks may be special tokens, so the text must show them
            params = msgspec.structs.replace(params, skip_special_tokens=False)
        self.service.warn_of_unknown(ignored)
        self._claim(http, body, prefix, len(prompts))
        requests: list[CoreRequest] = []
        for entry, prompt in zip(self._entries, prompts):
            if requests:
                await asyncio.sleep(0)  # other requests get a turn between two prompts
            settled = requests[0].params if requests else None  # made once for all prompts
            requests.append(
                await self._tokenize(
                    http, body, entry, prompt, params, settled, add_special_tokens, ignored, rules
                )
            )
        self.service.limits.check_logprobs(requests, body.LOGPROBS, body.times_prompt_logprobs)
        for place, (request, prompt) in enumerate(zip(requests, prompts)):
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            self._send(place, request, prompt, rules)
        for entry in self._entries:
            await entry.until_booked()

    def _claim(self, http: Request, body: GenerationRequest, prefix: str, num_prompts: int) -> None:
        """Claim an id and a place in the queue for each prompt.

        The id is the body's request_id, else the header X-Request-Id, else a new one.
        """
        own = uuid.uuid4().hex[:16]
        if body.request_id is not None:
            if not _ID.fullmatch(body.request_id):
                raise bad_request(
                    "request_id must be 1 to 64 letters, digits, '-' or '_'.", "request_id"
                )
            names = [body.request_id]
        else:
            # A proxy may set the header, in any form, and repeat it with a retry: it never fails a
            # request.
            given = http.headers.get("x-request-id", "")
            names = [given + self._mark, own] if _ID.fullmatch(given) else [own]
        for name in names:
            self.id = prefix + name
            ids = [prompt_name(self.id, place) for place in range(num_prompts)]
            try:
                self._entries = self.service.client.claim(ids, self._mailbox)
                return
            except IdInUse as clash:
                problem = bad_request(f"request_id {clash.request_id!r} is in use.", "request_id")
        raise problem

    async def _tokenize(
        self,
        http: Request,
        body: GenerationRequest,
        entry: OpenRequest,
        prompt: str | list[int],
        params: SamplingParams,
        settled: SamplingParams | None,
        add_special_tokens: bool,
        ignored: list[str],
        rules: MessageRules | None,
    ) -> CoreRequest:
        """Make one prompt's request for the core."""
        if body.trace == "full":
            self.service.recorder.full_requests.add(entry.id)
        self._received.add(entry.id)
        try:
            return await self.text.input.process_async(
                prompt,
                params,
                settled=settled,
                request_id=entry.id,
                add_special_tokens=add_special_tokens,
                priority=body.priority,
                cache_salt=body.cache_salt or "",
                trace_full=body.trace == "full",
                route=http.url.path,
                client=http.client.host if http.client else "",
                trace_context=_trace_context(http, self.service.makes_spans),
                ignored=ignored,
                rules=rules,
            )
        except (TextError, ParameterError) as error:
            self._received.discard(entry.id)  # the record has its end
            if error.param.startswith("structured_outputs") and body.form[1]:
                error.param = body.form[1]  # as the body names it
            raise

    def _send(
        self,
        place: int,
        request: CoreRequest,
        prompt: str | list[int],
        rules: MessageRules | None,
    ) -> None:
        """Send one prompt to the core."""
        entry = self._entries[place]
        text = self.text.output.begin(request, prompt if isinstance(prompt, str) else None, rules)
        clock = RequestClock(self.service.metrics, request, text)
        self._parts[entry.id] = SentPrompt(place, entry, text, clock)
        self._unanswered.add(entry.id)
        self.requests.append(text)
        self.service.client.send(entry, request)
        self._received.discard(entry.id)  # the core records its end

    async def arrivals(self) -> AsyncIterator[Iterator[tuple[int, TextDelta]]]:
        """Yield new deltas, each time that there are some, until every answer is complete.

        Read each item to its end: a delta is processed when it is asked for, so that between two of
        them the sequences are as the first one left them. Raises `ApiError` when the engine fails.
        """
        while not self.finished:
            yield self.deltas(await self._mailbox.take())

    async def flow(self, take: Taker) -> None:
        """Have `take` called with what comes, until it returns False; it reads the `deltas` of it.

        It is called where the engine's news arrive, without a task switch. May return earlier.
        """
        if not self.finished:
            await self._mailbox.flow(take)

    async def flow_of_one(self, reader: Callable[[Mailbox], OwnReader]) -> None:
        """Do what `flow` does for the only prompt, which gets a reader of its own."""
        (entry,) = self._entries
        own = entry.reader = reader(self._mailbox)
        try:
            await self.flow(own.take_all)
        finally:
            entry.reader = self._mailbox
            own.leave()

    @property
    def only_text(self) -> SentPrompt | None:
        """Return the part of an answer whose next tokens add only text; None if they may add more.

        It has one sequence, without log-probabilities, stop strings and parts of a message, and the
        record doesn't have its text.
        """
        text = self.requests[0]
        alone = len(self.requests) == len(text.sequences) == 1
        if not alone or not text.sequences[0].only_text:
            return None
        part = self._parts[text.request_id]
        recorded = self.service.recorder.wants_full(text.request_id)
        return None if recorded or 0 not in part.clock.last_s else part

    def deltas(self, outputs: list[CoreOutput]) -> Iterator[tuple[int, TextDelta]]:
        """Yield the deltas of some outputs, each with the index of its prompt."""
        process, now = self.text.output.process, time.monotonic()
        for output in outputs:
            part = self._parts[output.request_id]
            delta = process(part.text, output)
            if delta is None:
                continue
            if delta.token_ids:
                part.clock.tokens(delta.index, len(delta.token_ids), now)
            if delta.finish_reason is not None:
                part.clock.finished(delta.index, delta.finish_reason)
                if delta.finish_reason == "error":
                    raise self._failure(output)
                if delta.finish_in_core:
                    stop = "" if delta.stop_reason is None else str(delta.stop_reason)
                    self.service.client.finish(part.entry, delta.index, stop)
                if part.text.finished:
                    part.complete_ns = time.monotonic_ns()
                    self._unanswered.discard(output.request_id)
                    self.finished = not self._unanswered
            if self.interval == 1 or (delta := self._gathered(part, delta)) is not None:
                yield part.place, delta

    def _gathered(self, part: SentPrompt, delta: TextDelta) -> TextDelta | None:
        """Return what is to be told of a sequence now, None if it is to be told later.

        Told immediately: the first tokens, and all that is left at the end.
        """
        earlier = part.gathered.pop(delta.index, None)
        if earlier is not None:
            delta.join(earlier)
        num_tokens = len(delta.token_ids)
        is_first = num_tokens == len(part.text.sequences[delta.index].token_ids)
        if is_first or num_tokens >= self.interval or delta.finish_reason is not None:
            return delta
        part.gathered[delta.index] = delta
        return None

    def _failure(self, output: CoreOutput) -> ApiError:
        """Make the error that ends the request.

        A form or a list of tokens that leaves nothing to draw is the request's own: a client that
        repeats what failed with 500 would fail again.
        """
        if not output.error_param:
            return ApiError(500, output.error or "The engine failed at this request.")
        own = output.error_param
        return bad_request(output.error, self._form if own == FORM and self._form else own)

    async def run(self) -> None:
        """Wait until every answer is complete."""
        async for deltas in self.arrivals():
            for place, _ in enumerate(deltas):
                if place % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)

    @property
    def usage(self) -> TokenUsage:
        """Count the tokens so far, of all prompts and answers."""
        parts = [request.usage for request in self.requests]
        reasoning = [part.reasoning_tokens for part in parts if part.reasoning_tokens is not None]
        return TokenUsage(
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
            reasoning_tokens=sum(reasoning) if reasoning else None,
        )

    def sent(self) -> None:
        """Record that the whole answer went out."""
        now = time.monotonic_ns()
        for name, part in self._parts.items():
            sending_us = (now - part.complete_ns) / 1e3
            self.service.recorder.record(RequestAnswered(request_id=name, sending_us=sending_us))

    def close(self, why: str = "the client left") -> None:
        """Release everything; sequences that still run are aborted in the engine. Only the first
        call has an effect."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as each:  # also after one that raises
            each.callback(self.service.open.discard, self)
            for entry in self._entries:
                each.callback(self._release, entry, why)

    def _release(self, entry: OpenRequest, why: str) -> None:
        self.service.client.release(entry, why)
        self.service.recorder.full_requests.discard(entry.id)
        if entry.id in self._received:
            self.service.recorder.record(RequestRefused(request_id=entry.id, why=why))
        part = self._parts.get(entry.id)
        if part is not None and entry.num_sequences:
            part.clock.aborted()


def _trace_context(http: Request, makes_spans: bool) -> dict[str, str]:
    """Return the headers that put a request's span into its caller's trace.

    The parent is two numbers, by which the record can be joined to the caller's own. The state is
    whatever its vendors wrote: it is of use for spans alone.
    """
    if TRACE_PARENT not in http.headers:
        return {}
    names = (TRACE_PARENT, TRACE_STATE) if makes_spans else (TRACE_PARENT,)
    found = {name: http.headers.get(name, "") for name in names}
    return {name: value for name, value in found.items() if 0 < len(value) <= MOST_TRACE_CONTEXT}
