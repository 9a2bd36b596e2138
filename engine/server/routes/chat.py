"""Serve POST /v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine import __version__
from engine.server.answering.answer_schemas import ChatCompletion
from engine.server.answering.door import checked_route
from engine.server.answering.generation import Generation
from engine.server.answering.protocol import ChatRequest
from engine.server.answering.rendering import render
from engine.server.answering.reply import Reply
from engine.server.http.answers import (
    ChunkWriter,
    encoded,
    prompt_logprobs_json,
    token_name,
    usage_json,
    visible_logprob,
)
from engine.server.service import Service
from engine.text.lanes import LONG, in_lane
from engine.text.output import MANY_LOGPROBS, Logprob, PositionLogprobs, SequenceText


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))

    @routes.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        service.check_model(body.model)
        body.check()

        async def prompts() -> list[str]:
            return [await render(service, body)]

        return Reply(
            service,
            http,
            body,
            prompts,
            prefix="chatcmpl-",
            add_special_tokens=bool(body.add_special_tokens),  # the template writes them
            write=lambda generation: ChatAnswer(generation, body),
        )

    return routes


class ChatAnswer:
    """Write what a generation brings, in one body or in chunks."""

    def __init__(self, generation: Generation, body: ChatRequest):
        self.generation = generation
        self.body = body
        self.request = generation.requests[0]
        self.head = {
            "id": generation.id,
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": generation.service.config.model_name,
            "system_fingerprint": f"glasshouse-{__version__}",
        }
        self.token_name = token_name(body.return_tokens_as_token_ids)
        self.writer = ChunkWriter(self.head)
        self.num_written = [0] * len(self.request.sequences)  # tokens, by choice
        self.started = [False] * len(self.request.sequences)

    def whole(self) -> dict[str, Any]:
        """Write the one body of an answer that isn't streamed."""
        choices = encoded(
            {
                "index": sequence.index,
                "message": {"role": "assistant", "content": sequence.text},
                **self._rest(sequence),
            }
            for sequence in self.request.sequences
        )
        answer = {**self.head, "choices": choices, "usage": usage_json(self.generation.usage)}
        return {**answer, **self._prompt_extras()}

    async def chunks(self) -> AsyncIterator[list[bytes]]:
        """Yield JSON chunks as text comes; the chunks of a step together."""
        body = self.body
        extras: dict[str, Any] | None = None
        async for deltas in self.generation.arrivals():
            pieces = []
            for _, delta in deltas:
                if extras is None:
                    long = self.request.num_logprobs > MANY_LOGPROBS
                    extras = (
                        await in_lane(LONG, self._prompt_extras)
                        if long
                        else (self._prompt_extras())
                    )
                # Tokens whose text is held back are sent with the next text.
                if not delta.text and delta.finish_reason is None:
                    continue
                if not self.started[delta.index]:
                    self.started[delta.index] = True
                    opening = [self._opening(delta.index)]
                    pieces.append(self._chunk(opening, extras, body.continuous_usage))
                    extras = {}
                sequence = self.request.sequences[delta.index]
                content = {"content": delta.text} if delta.text else {}
                choice = {"index": delta.index, "delta": content, **self._rest(sequence)}
                pieces.append(self._chunk([choice], {}, body.continuous_usage))
            if pieces:
                yield pieces
        if body.include_usage:
            yield [self._chunk([], {}, with_usage=True)]

    @staticmethod
    def _opening(index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _rest(self, sequence: SequenceText) -> dict[str, Any]:
        """Return what a chunk has beside its text.

        Log-probabilities and ids of the tokens since the last chunk, and the finish reason.
        """
        written = self.num_written[sequence.index]
        self.num_written[sequence.index] = len(sequence.token_ids)
        logprobs = None
        if sequence.logprobs is not None:
            new = sequence.logprobs[written:]
            logprobs = {"content": [self._position_json(position) for position in new]}
        rest: dict[str, Any] = {
            "logprobs": logprobs,
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
            "token_ids": sequence.token_ids[written:] if self.body.return_token_ids else None,
        }
        return rest

    def _prompt_extras(self) -> dict[str, Any]:
        """Return what is sent about the prompt, once."""
        wants_ids, request = self.body.return_token_ids, self.request
        return {
            "prompt_logprobs": prompt_logprobs_json(request.prompt_logprobs),
            "prompt_token_ids": request.prompt_token_ids if wants_ids else None,
        }

    def _position_json(self, position: PositionLogprobs) -> dict[str, Any]:
        return {
            **self._token_json(position.chosen),
            "top_logprobs": [self._token_json(candidate) for candidate in position.top],
        }

    def _token_json(self, token: Logprob) -> dict[str, Any]:
        return {
            "token": self.token_name(token.token_id, token.decoded_token),
            "logprob": visible_logprob(token.logprob),
            "bytes": list(token.bytes),
        }

    def _chunk(
        self, choices: list[dict[str, Any]], extras: dict[str, Any], with_usage: bool = False
    ) -> bytes:
        chunk: dict[str, Any] = {"choices": choices, **extras}
        if with_usage:
            chunk["usage"] = usage_json(self.generation.usage)
        elif self.body.include_usage:
            chunk["usage"] = None
        return self.writer.chunk(chunk)
