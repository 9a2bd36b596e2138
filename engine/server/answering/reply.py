"""Generate the answer to one HTTP request, from its prompts to its last byte.

All of it happens within one call. Whatever ends that call early (the client leaves, the server
ends, something fails) also ends the generation, so it has an owner at every moment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.sampling_params import ParameterError
from engine.server.answering.generation import Generation
from engine.server.answering.protocol import GenerationRequest
from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.http.sse import Direct, EventStream, Framing, unless_left
from engine.server.service import Service
from engine.text.errors import TextError
from engine.text.lanes import LONG, in_lane
from engine.text.token_logprobs import MANY_LOGPROBS


class Writer(Protocol):
    """Write the answer to a generation: in one body, or in chunks as `framing` takes them."""

    framing: Framing

    def whole(self) -> dict[str, Any]: ...

    def chunks(self, direct: Direct | None) -> AsyncIterator[list[Any]]: ...


class Reply(Response):
    """Answer one HTTP request.

    `prompts` finds its prompts, `write` makes the answer of its generation. Errors before the first
    byte are raised: `ApiError`, `ParameterError`, `TextError`.
    """

    def __init__(
        self,
        service: Service,
        http: Request,
        body: GenerationRequest,
        prompts: Callable[[], Awaitable[Sequence[str | list[int]]]],
        *,
        prefix: str,
        add_special_tokens: bool,
        write: Callable[[Generation], Writer],
    ):
        self.service = service
        self.http = http
        self.generation_body = body
        self.prompts = prompts
        self.prefix = prefix
        self.add_special_tokens = add_special_tokens
        self.write = write
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = Generation(self.service)
        try:
            await unless_left(receive, self._start(generation))
            answer = self.write(generation)
            if self.generation_body.stream:
                stream = EventStream(answer.chunks, self.service.heartbeat_s, answer.framing)
                await stream(scope, receive, send)
            else:
                await unless_left(receive, generation.run())
                response = await self._written(generation, answer)
                await response(scope, receive, send)
            if generation.finished:
                generation.sent()
        except (ApiError, ParameterError, TextError) as error:
            generation.close(str(error))
            raise
        finally:
            generation.close()

    @staticmethod
    async def _written(generation: Generation, answer: Writer) -> Response:
        """Write the answer; a long one not on the event loop."""
        if sum(request.num_logprobs for request in generation.requests) > MANY_LOGPROBS:
            return await in_lane(LONG, lambda: json_response(answer.whole()))
        return json_response(answer.whole())

    async def _start(self, generation: Generation) -> None:
        prompts = await self.prompts()
        await generation.start(
            self.http, self.generation_body, prompts, self.prefix, self.add_special_tokens
        )
