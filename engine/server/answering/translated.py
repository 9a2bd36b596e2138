"""Answer a request of another API by the one inner request that it is translated into."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive, Scope, Send

from engine.sampling_params import ParameterError
from engine.server.answering.generation import Generation
from engine.server.answering.passed import InnerRequest
from engine.server.answering.piece_answer import PieceAnswer
from engine.server.answering.rendering import render
from engine.server.answering.reply import Reply
from engine.server.http.errors import ApiError
from engine.server.service import Service
from engine.text.errors import TextError
from engine.text.lanes import LONG, in_lane

T = TypeVar("T")


FEW_PARTS = 64


def count_parts(messages: Sequence[Mapping[str, Any]]) -> int:
    """Count messages or items, and the parts of their contents."""
    contents = (message.get("content") for message in messages)
    return len(messages) + sum(len(each) for each in contents if isinstance(each, list))


async def translated(is_long: bool, translate: Callable[[], T]) -> T:
    """Translate a request, a long one not on the event loop."""
    return await in_lane(LONG, translate) if is_long else translate()


class TranslatedReply(Reply):
    """Answer with one message. Errors name the fields of the outer request."""

    def __init__(
        self,
        service: Service,
        http: Request,
        inner: InnerRequest,
        *,
        prefix: str,
        write: Callable[[Generation], PieceAnswer],
        prepare: Callable[[], Awaitable[None]] | None = None,
    ):
        """Begin the answer. prepare: what is done to `inner` before it is rendered."""
        self.inner = inner

        async def prompts() -> list[str]:
            if prepare is not None:
                await prepare()
            return [await render(service, inner)]

        super().__init__(
            service,
            http,
            inner,
            prompts,
            prefix=prefix,
            add_special_tokens=False,  # the template writes them
            write=write,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except (ApiError, ParameterError, TextError) as error:
            raise self.inner.told(error) from None
