"""Serve POST /v1/completions: prompts in (text or token ids), the text that follows them out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.server.answering.answer_schemas import Completion
from engine.server.answering.door import checked_route
from engine.server.answering.generation import Generation
from engine.server.answering.protocol import CompletionRequest
from engine.server.answering.reply import Reply
from engine.server.http.answers import (
    ChunkWriter,
    prompt_logprobs_json,
    token_name,
    usage_json,
    visible_logprob,
)
from engine.server.service import Service
from engine.text.detokenizer import answer_detokenizer
from engine.text.offsets import TextOffsets, prompt_offsets
from engine.text.output import PositionLogprobs, RequestText


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))

    @routes.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        service.check_model(body.model)

        async def prompts() -> Sequence[str | list[int]]:
            return body.prompts()

        return Reply(
            service,
            http,
            body,
            prompts,
            prefix="cmpl-",
            add_special_tokens=body.add_special_tokens is not False,
            write=lambda generation: CompletionAnswer(generation, body),
        )

    return routes


class Choice:
    """Track one answer, choice number prompt · n + sequence: what of it has been written so far."""

    def __init__(self, answer: CompletionAnswer, place: int, sequence: int):
        body = answer.body
        self.answer = answer
        self.request: RequestText = answer.generation.requests[place]
        self.sequence = self.request.sequences[sequence]
        self.number = place * (body.n or 1) + sequence
        self.started = False
        self.echoed = ""  # the prompt, once it has been written before the text
        self.num_tokens = 0  # tokens written so far
        self.offsets: TextOffsets | None = None  # of the tokens, once some are written

    def write(self, text: str) -> dict[str, Any]:
        """Write the next piece: `text`, and the tokens since the last piece.

        An echoed prompt is written before the first piece.
        """
        body, sequence, request = self.answer.body, self.sequence, self.request
        first, self.started = not self.started, True
        if first and body.echo:
            self.echoed = self.answer.prompt_text(request)
        choice: dict[str, Any] = {
            "index": self.number,
            "text": self.echoed + text if first else text,
            "logprobs": None if body.logprobs is None else self._logprobs(first),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        if first and body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs_json(request.prompt_logprobs)
        if body.return_token_ids:
            choice["token_ids"] = sequence.token_ids[self.num_tokens :]
            if first:
                choice["prompt_token_ids"] = request.prompt_token_ids
        self.num_tokens = len(sequence.token_ids)
        return choice

    def _logprobs(self, first: bool) -> dict[str, Any]:
        """Return the four lists of this API for the tokens since the last piece.

        Before them come those of an echoed prompt; its first token has only itself.
        """
        answer, request, sequence = self.answer, self.request, self.sequence
        positions: list[PositionLogprobs | None] = []
        offsets: list[int] = []
        tokenizer = answer.generation.text.tokenizer
        if first and answer.body.echo:
            positions += request.prompt_logprobs or []
            offsets += prompt_offsets(tokenizer, request.prompt_token_ids, self.echoed)
        new = (sequence.logprobs or [])[self.num_tokens :]
        positions += new
        if self.offsets is None:
            detokenizer = answer_detokenizer(tokenizer, request.prompt_token_ids, request.params)
            self.offsets = TextOffsets(detokenizer, len(self.echoed))
        offsets += [self.offsets.take(position.chosen.token_id) for position in new]
        name = answer.token_name
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for position in positions:
            if position is None:
                first_id = request.prompt_token_ids[0]
                tokens.append(name(first_id, tokenizer.token(first_id).text))
                values.append(None)
                tops.append(None)
                continue
            chosen = position.chosen
            tokens.append(name(chosen.token_id, chosen.decoded_token))
            values.append(visible_logprob(chosen.logprob))
            # Best first: if two tokens have the same text, the better one keeps the name.
            top: dict[str, float] = {}
            for candidate in [*position.top, chosen]:
                own = name(candidate.token_id, candidate.decoded_token)
                top.setdefault(own, visible_logprob(candidate.logprob))
            tops.append(top)
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


class CompletionAnswer:
    """Write what a generation brings, in one body or in chunks."""

    def __init__(self, generation: Generation, body: CompletionRequest):
        self.generation = generation
        self.body = body
        self.token_name = token_name(body.return_tokens_as_token_ids)
        self.head = {
            "id": generation.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.service.config.model_name,
        }
        self.writer = ChunkWriter(self.head)
        self.choices = {
            (place, sequence): Choice(self, place, sequence)
            for place in range(len(generation.requests))
            for sequence in range(body.n or 1)
        }

    def whole(self) -> dict[str, Any]:
        """Write the one body of an answer that isn't streamed."""
        choices = [
            {"prompt_logprobs": None, **choice.write(choice.sequence.text)}
            for choice in self.choices.values()
        ]
        return {**self.head, "choices": choices, "usage": usage_json(self.generation.usage)}

    async def chunks(self) -> AsyncIterator[list[bytes]]:
        """Yield JSON chunks as text comes; the chunks of a step together."""
        body, generation = self.body, self.generation
        async for deltas in generation.arrivals():
            pieces = []
            for place, delta in deltas:
                choice = self.choices[place, delta.index]
                # Tokens whose text is held back are sent with the next text.
                if delta.text or delta.finish_reason or (body.echo and not choice.started):
                    pieces.append(self._chunk([choice.write(delta.text)], body.continuous_usage))
            if pieces:
                yield pieces
        if body.include_usage:
            yield [self._chunk([], with_usage=True)]

    def _chunk(self, choices: list[dict[str, Any]], with_usage: bool) -> bytes:
        chunk: dict[str, Any] = {"choices": choices}
        if with_usage:
            chunk["usage"] = usage_json(self.generation.usage)
        elif self.body.include_usage:
            chunk["usage"] = None
        return self.writer.chunk(chunk)

    def prompt_text(self, request: RequestText) -> str:
        """Return the prompt to echo: as it was sent, unless it was token ids or was truncated."""
        if request.prompt is not None and request.params.truncate_prompt_tokens is None:
            return request.prompt
        return self.generation.text.tokenizer.decode(
            request.prompt_token_ids, request.params.skip_special_tokens
        )
