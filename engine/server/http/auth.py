"""Check the API key in constant time.

A plain ASGI wrapper: it sees a request before any of it is parsed, and adds nothing to the cost of
a streamed chunk.
"""

from __future__ import annotations

import contextlib
import hmac
from collections.abc import Sequence

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.http.errors import ApiError
from engine.server.http.shapes import failure_response

OF_PHONES = frozenset(f"/class{part}" for part in ("", "/ask", "/life", "/question", "/choose"))

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/version"}) | OF_PHONES
"""Paths that need no key: they show no text and cost no computation; or they are a class's, which
has a code of its own."""

OPEN_FOLDERS = ("/room/", "/guide/", "/compared/")
"""The live page's files and guides: what the page shows comes from routes that need the key. And
comparisons, which such a route makes: their names can't be guessed."""


KEY_PLACE = "glasshouse.key_place"


class ApiKey:
    """Pass a request that carries one of the keys; else answer 401.

    As `Authorization: Bearer …`, or as `x-api-key`, where some of Anthropic's clients have it.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self.app = app
        self.keys = [_as_sent(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or is_open(get_route_path(scope)):
            await self.app(scope, receive, send)
            return
        known = self._place(scope)
        if known is not None:
            scope[KEY_PLACE] = known
            await self.app(scope, receive, send)
            return
        error = ApiError(
            401,
            "The API key is missing or wrong. Send it in the header `Authorization: Bearer KEY`, "
            "or in `x-api-key`.",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await failure_response(error, scope)(scope, receive, send)

    def _place(self, scope: Scope) -> int | None:
        """Return which of the keys a request carries."""
        # All are compared, so that the time doesn't tell which one nearly matched.
        same = [
            [max(hmac.compare_digest(given, way) for way in ways) for ways in self.keys]
            for given in given_keys(scope)
        ]
        places = [row.index(True) for row in same if any(row)]
        return places[0] if places else None


def key_place(scope: Scope) -> int:
    """Return which of the server's keys a request came with: what belongs to whom."""
    return scope.get(KEY_PLACE, 0)


def given_keys(scope: Scope) -> list[bytes]:
    """Return the keys that a request carries, of any worth."""
    headers = Headers(scope=scope)
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = [token] if scheme.lower() == "bearer" else []
    if "x-api-key" in headers:
        given.append(headers["x-api-key"])
    return [text.strip(" \t").encode("latin-1") for text in given]  # as they were sent


def _as_sent(key: str) -> list[bytes]:
    """Return a key as clients send it: HTTP names no encoding, most take UTF-8, some Latin-1."""
    ways = {key.encode()}
    with contextlib.suppress(UnicodeEncodeError):
        ways.add(key.encode("latin-1"))
    return sorted(ways)


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)
