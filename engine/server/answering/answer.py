"""Write the answer to a generation; completions and chat say what a choice looks like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import msgspec

from engine.core.messages import CoreOutput
from engine.server.answering.generation import Generation
from engine.server.answering.protocol import GenerationRequest
from engine.server.answering.text_stream import TextStream
from engine.server.http.answers import ChunkWriter, TextChunk, encoded
from engine.server.http.sse import DATA_ALONE, Direct, without_line_ends
from engine.text.lanes import LONG, in_lane
from engine.text.request_text import TextDelta, TokenUsage
from engine.text.token_logprobs import MANY_LOGPROBS, Logprob, PositionLogprobs

LOWEST_LOGPROB = -9999.0  # JSON has no −∞
NOTHING: dict[str, Any] = {}


class Answer:
    """Write what a generation brings, in one body or in chunks."""

    framing = DATA_ALONE

    def __init__(self, generation: Generation, body: GenerationRequest, kind: str, **more: str):
        """Begin the answer to `body`. kind: its name in the API. more: further keys."""
        self.generation = generation
        self.body = body
        self.head = {
            "id": generation.id,
            "object": kind,
            "created": int(time.time()),
            "model": generation.service.config.model_name,
            **more,
        }
        self.token_name = token_name(body.return_tokens_as_token_ids)
        self.writer = ChunkWriter(self.head)
        self.tells_usage, self.counts_on = body.include_usage, body.continuous_usage
        self.only_text = not self.counts_on and not body.return_token_ids

    # ------------------------------------------------------------ what the two APIs do differently

    def whole_choices(self) -> Iterator[dict[str, Any]]:
        """Yield the choices of an answer that isn't streamed."""
        raise NotImplementedError

    def begins(self, place: int, delta: TextDelta) -> bool:
        """Return whether `write` writes the first chunk of a choice now."""
        raise NotImplementedError

    def write(self, place: int, delta: TextDelta, pieces: list[bytes]) -> None:
        """Append the chunks for new text of prompt number `place`; none if it is held back."""
        raise NotImplementedError

    def text_only(self, text: str) -> bytes:
        """Write a chunk of the first choice that has only text, as `write` would."""
        raise NotImplementedError

    def make(self, place: int) -> None:
        """Prepare the part of the answer that is about a prompt, before it is written.

        For a long prompt this is called outside the event loop.
        """
        raise NotImplementedError

    @cached_property
    def prompt_extras(self) -> dict[str, Any]:
        """Return what stands beside the choices about the prompt."""
        return NOTHING

    # ----------------------------------------------------------------------------- what they share

    def whole(self) -> dict[str, Any]:
        """Write the one body of an answer that isn't streamed."""
        choices, usage = encoded(self.whole_choices()), usage_json(self.generation.usage)
        return {**self.head, "choices": choices, "usage": usage, **self.prompt_extras}

    async def chunks(self, direct: Direct | None) -> AsyncIterator[list[bytes]]:
        """Yield JSON chunks as text comes; the chunks of a step together.

        Where there is `direct`, most are given to it instead, where the engine's news arrive.
        """
        write, requests = self.write, self.generation.requests
        not_begun = sum(len(request.sequences) for request in requests)
        async for deltas in self.generation.arrivals():
            pieces: list[bytes] = []
            for place, delta in deltas:
                long = False
                if not_begun and self.begins(place, delta):
                    not_begun -= 1
                    long = requests[place].num_logprobs > MANY_LOGPROBS
                if not long:
                    write(place, delta, pieces)
                    continue
                await in_lane(LONG, partial(self.make, place))
                write(place, delta, pieces)
                yield pieces
                pieces = []
                await asyncio.sleep(0)  # other requests get a turn before the next choice
            if pieces:
                yield pieces
            if direct is not None and not not_begun:
                await self._flow(direct)
        if self.tells_usage:
            yield [self.chunk([], with_usage=True)]

    async def _flow(self, direct: Direct) -> None:
        """Take the outputs of an answer whose choices have all begun where they arrive."""
        generation, general = self.generation, partial(self._pass_on, direct)
        part = generation.only_text if self.only_text else None
        if part is None:
            await generation.flow(general)
            return
        chunk = TextChunk(lambda text: self.framing.join([self.text_only(text)]), without_line_ends)
        await generation.flow_of_one(
            lambda mailbox: TextStream(
                *(mailbox, part.text, part.clock, chunk, direct, general),
                *(generation.interval, part.gathered),
            )
        )

    def _pass_on(self, direct: Direct, outputs: list[CoreOutput]) -> bool:
        """Push the chunks of some outputs; return whether more may be pushed."""
        pieces: list[bytes] = []
        for place, delta in self.generation.deltas(outputs):
            self.write(place, delta, pieces)
        return (not pieces or direct.push(pieces)) and not self.generation.finished

    def chunk(
        self, choices: list[dict[str, Any]], with_usage: bool, extras: dict[str, Any] = NOTHING
    ) -> bytes:
        """Write one chunk; `extras` stand beside its choices."""
        chunk: dict[str, Any] = {"choices": choices, **extras}
        if with_usage:
            chunk["usage"] = usage_json(self.generation.usage)
        elif self.tells_usage:
            chunk["usage"] = None
        return self.writer.chunk(chunk)


def visible_logprob(value: float) -> float:
    """Return `value`, or a very small number for the −∞ of an excluded token."""
    return max(value, LOWEST_LOGPROB)


def token_name(as_token_id: bool | None) -> Callable[[int, str], str]:
    """Choose how log-probabilities name a token: by its text or by its id.

    return_tokens_as_token_ids asks for ids, which are unique.
    """
    if as_token_id:
        return lambda token_id, text: f"token_id:{token_id}"
    return lambda token_id, text: text


def position_json(position: PositionLogprobs, name: Callable[[int, str], str]) -> dict[str, Any]:
    """Write the log-probabilities at a position as chats have them. `name`: of a token."""

    def told(token: Logprob) -> dict[str, Any]:
        return {
            "token": name(token.token_id, token.decoded_token),
            "logprob": visible_logprob(token.logprob),
            "bytes": list(token.bytes),
        }

    return {**told(position.chosen), "top_logprobs": [told(token) for token in position.top]}


def usage_json(usage: TokenUsage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
    if usage.reasoning_tokens is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return told


def prompt_logprobs_json(
    positions: Sequence[PositionLogprobs | None] | None,
) -> msgspec.Raw | None:
    """Encode the probable tokens at each position of the prompt, by token id; None for the
    first."""
    return None if positions is None else encoded(map(_by_id, positions))


def _by_id(position: PositionLogprobs | None) -> dict[str, dict[str, Any]] | None:
    if position is None:
        return None
    by_id: dict[str, dict[str, Any]] = {}
    for candidate in [*position.top, position.chosen]:
        by_id.setdefault(
            str(candidate.token_id),
            {
                "logprob": visible_logprob(candidate.logprob),
                "rank": candidate.rank,
                "decoded_token": candidate.decoded_token,
            },
        )
    return by_id
