"""Serve POST /v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine import __version__
from engine.server.answering.answer import NOTHING, Answer, position_json, prompt_logprobs_json
from engine.server.answering.answer_schemas import ChatCompletion
from engine.server.answering.door import checked_route
from engine.server.answering.generation import Generation
from engine.server.answering.message_json import delta_json, finish_reason, message_json
from engine.server.answering.protocol import ChatRequest
from engine.server.answering.rendering import render
from engine.server.answering.reply import Reply
from engine.server.http.answers import TextChunk
from engine.server.service import Service
from engine.text.request_text import SequenceText, TextDelta

NOTHING_MORE: dict[str, Any] = {"logprobs": None, "finish_reason": None}
"""The other fields of a chunk's choice if another chunk of the same step follows."""


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


class ChatAnswer(Answer):
    """Write the assistant's message of each choice."""

    body: ChatRequest

    def __init__(self, generation: Generation, body: ChatRequest):
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        super().__init__(generation, body, kind, system_fingerprint=f"glasshouse-{__version__}")
        self.request = generation.requests[0]
        self.only_text = self.only_text and self.request.params.logprobs is None
        self.text_chunks: dict[int, TextChunk] = {}  # by choice
        self.num_written = [0] * len(self.request.sequences)  # tokens, by choice
        self.started = [False] * len(self.request.sequences)

    def whole_choices(self) -> Iterator[dict[str, Any]]:
        for sequence in self.request.sequences:
            message = {"role": "assistant", **message_json(sequence)}
            yield {"index": sequence.index, "message": message, **self._rest(sequence)}

    def begins(self, place: int, delta: TextDelta) -> bool:
        return not self.started[delta.index] and (
            bool(delta.text if delta.pieces is None else delta.pieces)
            or delta.finish_reason is not None
        )

    def write(self, place: int, delta: TextDelta, pieces: list[bytes]) -> None:
        # Tokens whose text is held back are sent with the next text.
        new = delta.text if delta.pieces is None else delta.pieces
        if not new and delta.finish_reason is None:
            return
        plain = self.only_text and delta.pieces is None and delta.finish_reason is None
        if plain and self.started[delta.index]:
            text_chunk = self.text_chunks.get(delta.index)
            if text_chunk is None:
                text_chunk = TextChunk(partial(self._text_chunk, delta.index))
                self.text_chunks[delta.index] = text_chunk
            pieces.append(text_chunk.chunk(delta.text))
            return
        usage = self.counts_on
        if not self.started[delta.index]:
            extras = NOTHING if any(self.started) else self.prompt_extras
            self.started[delta.index] = True
            pieces.append(self.chunk([self._opening(delta.index)], usage, extras))
        written = delta_json(delta)
        rest = self._rest(self.request.sequences[delta.index])
        for content in written[:-1]:
            choice = {"index": delta.index, "delta": content, **NOTHING_MORE}
            pieces.append(self.chunk([choice], usage))
        pieces.append(self.chunk([{"index": delta.index, "delta": written[-1], **rest}], usage))

    def _text_chunk(self, index: int, text: str) -> bytes:
        rest = self._rest(self.request.sequences[index])
        return self.chunk([{"index": index, "delta": {"content": text}, **rest}], False)

    def text_only(self, text: str) -> bytes:
        return self._text_chunk(0, text)

    def make(self, place: int) -> None:
        _ = self.prompt_extras

    @cached_property
    def prompt_extras(self) -> dict[str, Any]:
        wants_ids, request = self.body.return_token_ids, self.request
        return {
            "prompt_logprobs": prompt_logprobs_json(request.prompt_logprobs),
            "prompt_token_ids": request.prompt_token_ids if wants_ids else None,
        }

    @staticmethod
    def _opening(index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, **NOTHING_MORE}

    def _rest(self, sequence: SequenceText) -> dict[str, Any]:
        """Return the fields of a chunk other than its text.

        Log-probabilities and ids of the tokens since the last chunk, and the finish reason.
        """
        written = self.num_written[sequence.index]
        self.num_written[sequence.index] = len(sequence.token_ids)
        logprobs = None
        if sequence.logprobs is not None:
            new = sequence.logprobs[written:]
            logprobs = {"content": [position_json(position, self.token_name) for position in new]}
        rest: dict[str, Any] = {
            "logprobs": logprobs,
            "finish_reason": finish_reason(sequence, self.body.choice.kind),
            "stop_reason": sequence.stop_reason,
            "token_ids": sequence.token_ids[written:] if self.body.return_token_ids else None,
        }
        return rest
