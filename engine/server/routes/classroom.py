"""Serve a class: the page of a phone, its questions, and the code for the teacher's screen.

All of it is off unless the server was started with --classroom. A phone needs the class's code in
place of the API key, and gets no more than `pupils.py` bounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import segno
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from engine.server.answering.door import checked_route
from engine.server.answering.protocol import ChatRequest
from engine.server.answering.rendering import render
from engine.server.answering.reply import Reply
from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.pupils import (
    MOST_CHARACTERS,
    MOST_TOKENS,
    ClassError,
    Classroom,
    address,
)
from engine.server.routes.chat import ChatAnswer
from engine.server.routes.class_votes import add_votes
from engine.server.routes.page import HEADERS, WEB
from engine.server.service import Service
from engine.server.voting import Voting

T = TypeVar("T")
_ORIGIN = re.compile(r"https?://[\w.:\[\]-]{1,200}")


class PhoneReply(Reply):
    """Answer a phone, and close its question at the end, whatever the end is."""

    def __init__(self, close: Callable[[], None], *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.close()


class Question(BaseModel):
    """Hold what a phone sends."""

    code: str = Field(max_length=16)
    name: str = Field(max_length=16)
    question: str = Field(min_length=1, max_length=MOST_CHARACTERS)


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=checked_route(lambda: service.limits))
    config = service.config
    room = Classroom() if config.classroom and config.trace != "off" else None
    voting = Voting()
    if room is not None:
        service.hub.subscribe(room.see)

    def of(code: str | None = None) -> Classroom:
        if room is None:
            raise ApiError(404, "This server has no class: it was started without --classroom.")
        if code is not None:
            _or_refuse(lambda: room.check_code(code), 403)
        return room

    @routes.get("/class", include_in_schema=False)
    async def phone() -> Response:
        of()
        return FileResponse(WEB / "phone.html", media_type="text/html", headers=HEADERS)

    @routes.get("/class/code", include_in_schema=False)
    async def code(origin: str = Query("", max_length=220)) -> Response:
        """Return how phones join, for the teacher's page: {code, address, picture, phones}; nothing
        where there is no class, for every page asks."""
        if room is None:
            return Response(status_code=204)
        if not _ORIGIN.fullmatch(origin):
            raise ApiError(400, "origin must be the page's own, such as http://10.0.0.7:8000.")
        where = address(origin, config.root_path, room.code)
        picture = segno.make(where, micro=False, error="m").svg_data_uri(
            scale=8, border=2, dark="#1d2524", light="#ffffff"
        )
        phones = max(room.num_names, voting.num_phones)
        found = {"code": room.code, "address": where, "picture": picture, "phones": phones}
        return json_response(found)

    @routes.get("/class/life", include_in_schema=False)
    async def life(code: str = Query(max_length=16), name: str = Query(max_length=16)) -> Response:
        """Return the log's lines about a phone's latest question."""
        return json_response(of(code).life(name))

    @routes.post("/class/ask", include_in_schema=False)
    async def ask(question: Question, http: Request) -> Response:
        """Ask for a phone: a chat completion, streamed."""
        its = of(question.code)
        body = ChatRequest(
            model="",
            messages=[{"role": "user", "content": question.question}],
            max_tokens=MOST_TOKENS,
            stream=True,
            request_id=_or_refuse(lambda: its.ask(question.name), 409),
        )
        body.check()

        async def prompts() -> list[str]:
            return [await render(service, body)]

        return PhoneReply(
            lambda: its.close(question.name),
            service,
            http,
            body,
            prompts,
            prefix="chatcmpl-",
            add_special_tokens=bool(body.add_special_tokens),
            write=lambda generation: ChatAnswer(generation, body),
        )

    add_votes(routes, voting, of)
    return routes


def _or_refuse(do: Callable[[], T], status: int) -> T:
    try:
        return do()
    except ClassError as error:
        raise ApiError(status, str(error)) from None
