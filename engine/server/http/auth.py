"""Who may call: the API key, compared in constant time, and the limit on a body's size.

Both are plain ASGI wrappers: they see a request before any of it is parsed, and they add nothing to
the cost of a streamed chunk.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.http.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/version"})
"""Need no key: they show no text and cost no computation."""

OPEN_FOLDERS = ("/room/", "/guide/")
"""The live page's files and guides; what the page shows comes from routes that need the key."""


class ApiKey:
    """Lets a request pass if it carries one of the keys as `Authorization: Bearer …`; else answers
    401."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app = app
        self.keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]) or self._is_known(scope):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "The API key is missing or wrong. Send it in the header `Authorization: Bearer KEY`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        text = given.strip().encode()
        # All of them are compared: the time tells nothing about which one was nearly right.
        same = [hmac.compare_digest(text, key) for key in self.keys]
        return scheme.lower() == "bearer" and any(same)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


class BodyLimit:
    """Answers 413 to a body of more than `max_bytes`, whether it says its length or comes in
    chunks."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self.max_bytes):
            await self._error(int(length[:18])).response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                # FastAPI turns every other exception into a 400 while it reads a body.
                raise HTTPException(413, self._error(received).message)
            return message

        await self.app(scope, counted, send)

    def _error(self, size: int) -> ApiError:
        return ApiError(
            413,
            f"The body has {size:,} bytes or more; this server takes at most {self.max_bytes:,}.",
        )
