"""Answer a request of another API by the one inner request that it is translated into."""

from __future__ import annotations

from collections.abc import Callable

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
    ):
        self.inner = inner

        async def prompts() -> list[str]:
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
