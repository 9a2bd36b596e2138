"""Shorten a conversation that is too long for the context, from its oldest turns on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from engine.server.answering.passed import InnerRequest
from engine.server.answering.rendering import render
from engine.server.http.errors import ApiError
from engine.server.service import Service
from engine.text.lanes import in_lane, lane_for

KEPT = ("system", "developer")  # instructions stay


async def truncate(service: Service, inner: InnerRequest) -> None:
    """Remove the oldest turns of `inner`, as few as make the prompt fit.

    A turn begins with a message of the user, so a call never loses its result or the other way
    round. Room is left for the answer that was asked for, at most half of the context. What doesn't
    fit even then is refused later, as any prompt that is too long.
    """
    starts = [place for place, m in enumerate(inner.messages) if m["role"] == "user"]
    if len(starts) < 2:
        return
    text = service.ready_text()
    context = text.input.max_model_len
    room = min(inner.token_limit or context, context // 2)

    async def fits(start: int) -> bool:
        try:
            messages = [inner.messages[place] for place in _kept(inner, start)]
            prompt = await render(service, inner.model_copy(update={"messages": messages}))
        except ApiError as error:
            if error.param != "messages":
                raise
            return False  # longer than any text that could fit
        encode = text.tokenizer.encode
        tokens = await in_lane(lane_for(len(prompt)), lambda: encode(prompt, False))
        return len(tokens) + room <= context

    if await fits(0):
        return
    inner.keep_messages(_kept(inner, await _first_that(fits, starts[1:])))


async def _first_that(fits: Callable[[int], Awaitable[bool]], starts: list[int]) -> int:
    """Return the first start that fits, else the last one. Fewer messages make no longer prompt."""
    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(starts[middle]):
            high = middle
        else:
            low = middle + 1
    return starts[low]


def _kept(inner: InnerRequest, start: int) -> list[int]:
    """Return the places of the messages from `start` on, and of the instructions before."""
    return [
        place
        for place, message in enumerate(inner.messages)
        if place >= start or message["role"] in KEPT
    ]
