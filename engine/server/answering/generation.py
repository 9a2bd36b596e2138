"""Run one HTTP request in the engine, from its prompts to the last token of each answer.

Completions and chat differ in how a prompt is made and how an answer is written. What they share is
here: ids, queue limit, tokenizing, the engine, text, metrics, and releasing all of it.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

from fastapi import Request

from engine.core.messages import CoreOutput, CoreRequest
from engine.server.answering.protocol import GenerationRequest
from engine.server.http.errors import ApiError, bad_request
from engine.server.link.mailbox import Mailbox
from engine.server.service import Service
from engine.server.telemetry.metrics import RequestClock
from engine.text.output import RequestText, TextDelta, Usage

AT_ONCE = 32  # prompts or pieces handled before other requests get a turn
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Generation:
    """Hold the prompts of one HTTP request.

    `close()` must be called at its end, however it ends.
    """

    def __init__(self, service: Service, request_id: str):
        self.service = service
        self.id = request_id
        self.text = service.ready_text()
        self.requests: list[RequestText] = []  # one for each prompt; they grow as tokens come
        self._ids: list[str] = []
        self._mailbox = Mailbox()
        self._clocks: dict[str, RequestClock] = {}
        self._places: dict[str, int] = {}  # request id in the core → index of its prompt
        self._unanswered: set[str] = set()  # requests in the core that have more to come
        self.finished = False  # every answer is complete
        self._closed = False
        service.num_open += 1

    @classmethod
    async def start(
        cls,
        service: Service,
        http: Request,
        body: GenerationRequest,
        prompts: Sequence[str | list[int]],
        prefix: str,
        add_special_tokens: bool,
    ) -> Generation:
        """Check, tokenize and send the prompts.

        Raises `ApiError`, `ParameterError`, `TextError`.
        """
        ignored = body.check()
        body.take_defaults(service.defaults.sampling)
        body.sampling_params()  # finds wrong parameters before anything else is done
        if body.num_logprobs is not None:
            service.ready_text().input.check_logprobs(body.LOGPROBS, body.num_logprobs)
        service.warn_of_unknown(ignored)
        service.client.check_room(len(prompts))
        generation = cls(service, _request_id(body, http, prefix, service))
        try:
            await generation._send(http, body, prompts, add_special_tokens, ignored)
        except BaseException:
            generation.close("refused, or the client left")
            raise
        return generation

    async def _send(
        self,
        http: Request,
        body: GenerationRequest,
        prompts: Sequence[str | list[int]],
        add_special_tokens: bool,
        ignored: list[str],
    ) -> None:
        requests: list[CoreRequest] = []
        for place, prompt in enumerate(prompts):
            if place:
                await asyncio.sleep(0)  # other requests get a turn between two prompts
            request_id = self.id if len(prompts) == 1 else f"{self.id}-{place}"
            self._ids.append(request_id)
            if self.service.telemetry is not None:
                self.service.telemetry.spans.note_parent(request_id, http.headers)
            requests.append(
                await self.text.input.process_async(
                    prompt,
                    body.sampling_params(),
                    request_id=request_id,
                    add_special_tokens=add_special_tokens,
                    priority=body.priority,
                    cache_salt=body.cache_salt or "",
                    trace_full=body.trace == "full",
                    route=http.url.path,
                    client=http.client.host if http.client else "",
                    ignored=ignored,
                )
            )
        self.service.client.check_room(len(prompts))  # others may have come meanwhile
        booked = []
        for place, request in enumerate(requests):
            if place % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            entry = self.service.client.add(request, self._mailbox)
            prompt = prompts[place]
            text = self.text.output.add(request, prompt if isinstance(prompt, str) else None)
            self.requests.append(text)
            self._places[request.request_id] = place
            self._unanswered.add(request.request_id)
            self._clocks[request.request_id] = RequestClock(self.service.metrics, request, text)
            booked.append(entry.booked)
        for answer in booked:
            await answer

    async def arrivals(self) -> AsyncIterator[Iterator[tuple[int, TextDelta]]]:
        """Yield new deltas, each time that there are some, until every answer is complete.

        Read each item to its end: a delta is processed when it is asked for, so that between two of
        them the sequences are as the first one left them. Raises `ApiError` when the engine fails.
        """
        while not self.finished:
            yield self._deltas(await self._mailbox.take())

    def _deltas(self, outputs: list[CoreOutput]) -> Iterator[tuple[int, TextDelta]]:
        """Yield the deltas of some outputs, each with the index of its prompt."""
        for output in outputs:
            delta = self.text.output.process(output)
            if delta is None:
                continue
            if delta.finish_reason == "error":
                self._observe(output.request_id, delta)
                raise ApiError(500, output.error or "The engine failed at this request.")
            if delta.finish_in_core:
                stop = str(delta.stop_reason)
                self.service.client.finish(output.request_id, delta.index, stop)
            self._observe(output.request_id, delta)
            if delta.finish_reason is not None and delta.request.finished:
                self._unanswered.discard(output.request_id)
                self.finished = not self._unanswered
            yield self._places[output.request_id], delta

    async def run(self) -> None:
        """Wait until every answer is complete."""
        async for deltas in self.arrivals():
            for place, _ in enumerate(deltas):
                if place % AT_ONCE == AT_ONCE - 1:
                    await asyncio.sleep(0)

    @property
    def usage(self) -> Usage:
        """Count the tokens so far, of all prompts and answers."""
        parts = [request.usage for request in self.requests]
        return Usage(
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            cached_tokens=sum(part.cached_tokens for part in parts),
        )

    def close(self, why: str = "the client left") -> None:
        """Release everything; sequences that still run are aborted in the engine."""
        if self._closed:
            return
        self._closed = True
        self.service.num_open -= 1
        for request in self.requests:
            if not request.finished:
                self.service.metrics.count_success("abort")
                self.service.client.abort(request.request_id, why)
        for request_id in self._ids:
            self.text.output.remove(request_id)

    def _observe(self, request_id: str, delta: TextDelta) -> None:
        clock = self._clocks[request_id]
        if delta.token_ids:
            clock.tokens(delta.index, len(delta.token_ids))
        if delta.finish_reason is not None:
            clock.finished(delta.index, delta.finish_reason)


def _request_id(body: GenerationRequest, http: Request, prefix: str, service: Service) -> str:
    """Choose the request's id: the body's, else the header X-Request-Id, else a new one."""
    if body.request_id is not None:
        if not _ID.fullmatch(body.request_id):
            raise bad_request(
                "request_id must be 1 to 64 letters, digits, '-' or '_'.", "request_id"
            )
        return prefix + body.request_id
    own = prefix + uuid.uuid4().hex[:16]
    given = http.headers.get("x-request-id", "")
    # A proxy may set the header, in any form, and repeat it with a retry: it never fails a request.
    if not _ID.fullmatch(given) or prefix + given in service.client.requests:
        return own
    return prefix + given
