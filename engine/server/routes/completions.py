"""Serve POST /v1/completions: prompts in (text or token ids), the text that follows them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.server.answering.answer import Answer, prompt_logprobs_json, visible_logprob
from engine.server.answering.answer_schemas import Completion
from engine.server.answering.door import checked_route
from engine.server.answering.generation import Generation
from engine.server.answering.protocol import CompletionRequest
from engine.server.answering.reply import Reply
from engine.server.http.answers import TextChunk
from engine.server.service import Service
from engine.text.detokenizer import answer_detokenizer
from engine.text.offsets import TextOffsets, prompt_offsets
from engine.text.request_text import RequestText, TextDelta
from engine.text.token_logprobs import PositionLogprobs


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


class Tokens(NamedTuple):
    """Hold the log-probabilities of some tokens as this API writes them, a list a column."""

    names: list[str]
    values: list[float | None]
    tops: list[dict[str, float] | None]
    offsets: list[int]

    def before(self, later: Tokens) -> Tokens:
        """Return these, and then `later` ones."""
        return Tokens(
            self.names + later.names,
            self.values + later.values,
            self.tops + later.tops,
            self.offsets + later.offsets,
        )

    def json(self) -> dict[str, Any]:
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return dict(zip(names, self))


class PromptPart:
    """Hold what all choices of one prompt begin with. Each part is made when it is first asked for,
    once."""

    def __init__(self, answer: CompletionAnswer, place: int):
        self.answer = answer
        self.request: RequestText = answer.generation.requests[place]

    @cached_property
    def echo(self) -> str:
        """Return the echoed prompt: as sent, unless it was token ids or was truncated."""
        if not self.answer.body.echo:
            return ""
        request = self.request
        if request.prompt is not None and request.params.truncate_prompt_tokens is None:
            return request.prompt
        return self.answer.tokenizer.decode(
            request.prompt_token_ids, request.params.skip_special_tokens
        )

    @cached_property
    def tokens(self) -> Tokens:
        """Return the tokens of an echoed prompt; the first has only itself."""
        ids, tokenizer = self.request.prompt_token_ids, self.answer.tokenizer
        told = Tokens([], [], [], prompt_offsets(tokenizer, ids, self.echo))
        for position in self.request.prompt_logprobs or []:
            if position is None:
                told.names.append(self.answer.token_name(ids[0], tokenizer.token(ids[0]).text))
                told.values.append(None)
                told.tops.append(None)
            else:
                self.answer.tell(position, told)
        return told

    @cached_property
    def logprobs(self) -> msgspec.Raw | None:
        return prompt_logprobs_json(self.request.prompt_logprobs)

    def make(self) -> None:
        """Make what a long prompt needs time for."""
        body = self.answer.body
        if body.echo and body.logprobs is not None:
            _ = self.tokens
        if body.prompt_logprobs is not None:
            _ = self.logprobs


class Choice:
    """Track one answer, choice number prompt · n + sequence: what of it has been written so far."""

    def __init__(self, part: PromptPart, place: int, sequence: int):
        body = part.answer.body
        self.part = part
        self.sequence = part.request.sequences[sequence]
        self.number = place * (body.n or 1) + sequence
        self.started = False
        self.text_chunk: TextChunk | None = None  # for later pieces that are only text
        self.num_tokens = 0  # tokens written so far
        self.offsets: TextOffsets | None = None  # of the tokens, once some are written

    def write(self, text: str) -> dict[str, Any]:
        """Write the next piece: `text`, and the tokens since the last piece.

        An echoed prompt is written before the first piece.
        """
        part, sequence = self.part, self.sequence
        body, request = part.answer.body, part.request
        first, self.started = not self.started, True
        choice: dict[str, Any] = {
            "index": self.number,
            "text": part.echo + text if first else text,
            "logprobs": None if body.logprobs is None else self._logprobs(first),
            "finish_reason": sequence.finish_reason,
            "stop_reason": sequence.stop_reason,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        if first and body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = part.logprobs
        if body.return_token_ids:
            choice["token_ids"] = sequence.token_ids[self.num_tokens :]
            if first:
                choice["prompt_token_ids"] = request.prompt_token_ids
        self.num_tokens = len(sequence.token_ids)
        return choice

    def _logprobs(self, first: bool) -> dict[str, Any]:
        """Return the log-probabilities of the tokens since the last piece.

        Those of an echoed prompt come first.
        """
        part, request = self.part, self.part.request
        new = (self.sequence.logprobs or [])[self.num_tokens :]
        if self.offsets is None:
            detokenizer = answer_detokenizer(
                part.answer.tokenizer, request.prompt_token_ids, request.params
            )
            self.offsets = TextOffsets(detokenizer, len(part.echo))
        told = Tokens([], [], [], [])
        for position in new:
            part.answer.tell(position, told)
            told.offsets.append(self.offsets.take(position.chosen.token_id))
        if first and part.answer.body.echo:
            told = part.tokens.before(told)
        return told.json()


class CompletionAnswer(Answer):
    """Write the text of each choice."""

    body: CompletionRequest

    def __init__(self, generation: Generation, body: CompletionRequest):
        super().__init__(generation, body, "text_completion")
        self.only_text = self.only_text and body.logprobs is None
        self.tokenizer = generation.text.tokenizer
        self.parts = [PromptPart(self, place) for place in range(len(generation.requests))]
        self.choices = {
            (place, sequence): Choice(part, place, sequence)
            for place, part in enumerate(self.parts)
            for sequence in range(body.n or 1)
        }

    def tell(self, position: PositionLogprobs, told: Tokens) -> None:
        """Add what this API tells of a token to `told`, but for its offset."""
        chosen, name = position.chosen, self.token_name
        told.names.append(name(chosen.token_id, chosen.decoded_token))
        told.values.append(visible_logprob(chosen.logprob))
        # Best first: if two tokens have the same text, the better one keeps the name.
        top: dict[str, float] = {}
        for candidate in [*position.top, chosen]:
            own = name(candidate.token_id, candidate.decoded_token)
            top.setdefault(own, visible_logprob(candidate.logprob))
        told.tops.append(top)

    def whole_choices(self) -> Iterator[dict[str, Any]]:
        for choice in self.choices.values():
            yield {"prompt_logprobs": None, **choice.write(choice.sequence.text)}

    def begins(self, place: int, delta: TextDelta) -> bool:
        choice, echo = self.choices[place, delta.index], self.body.echo
        return not choice.started and bool(delta.text or delta.finish_reason or echo)

    def write(self, place: int, delta: TextDelta, pieces: list[bytes]) -> None:
        choice, body = self.choices[place, delta.index], self.body
        if self.only_text and choice.started and delta.finish_reason is None:
            if delta.text:
                if choice.text_chunk is None:
                    choice.text_chunk = TextChunk(partial(self._text_chunk, choice))
                pieces.append(choice.text_chunk.chunk(delta.text))
            return
        # Tokens whose text is held back are sent with the next text.
        if delta.text or delta.finish_reason or (body.echo and not choice.started):
            pieces.append(self.chunk([choice.write(delta.text)], self.counts_on))

    def _text_chunk(self, choice: Choice, text: str) -> bytes:
        return self.chunk([choice.write(text)], False)

    def text_only(self, text: str) -> bytes:
        return self._text_chunk(self.choices[0, 0], text)

    def make(self, place: int) -> None:
        self.parts[place].make()
