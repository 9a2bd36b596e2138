"""Do what every request and its answer need, whichever route it is for, and whether it fails.

- Each answer has an `X-Request-Id`: as the client sent it, or one made here, from which generations
  take their own id. Anthropic's clients get it as `request-id`, too.
- HEAD is answered as GET is, without the body.
- Each answer is counted, by its route, method and status.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.http.connection import BODY
from engine.server.http.shapes import speaks_anthropic

HEADER = b"x-request-id"
ANTHROPIC_HEADER = b"request-id"
NO_ROUTE = "none"

Observe = Callable[[str, str, int, float], None]
"""Called with (route, method, status, seconds) at the end of each answer."""


class Exchange:
    """Wrap the application, including its error pages. `observe` is called for every answer.

    `root_path` is where a proxy shows the server, whether or not the proxy removes that path.
    """

    def __init__(self, app: ASGIApp, observe: Observe, root_path: str = ""):
        self.app = app
        self.observe = observe
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.monotonic()
        inner, request_id = _with_request_id(scope)
        own_headers = [(HEADER, request_id)]
        if speaks_anthropic(scope):
            own_headers.append((ANTHROPIC_HEADER, request_id))
        inner["root_path"] = self.root_path
        if scope["method"] == "HEAD":
            inner["method"] = "GET"
            inner.pop(BODY, None)  # none of it is sent
            send, receive = _without_body(receive, send)
        status = 0  # nothing has been sent

        # It returns the result of `send` without awaiting it: a chunk of a stream costs one call.
        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [pair for pair in message["headers"] if pair[0].lower() != HEADER]
                message = {**message, "headers": [*headers, *own_headers]}
            return send(message)

        try:
            await self.app(inner, receive, send_with_id)
        except Exception:
            if status != 500:  # else the error is in the log and its page is sent: all is done, and
                raise  # the connection need not end
        finally:
            route = getattr(inner.get("route"), "path", NO_ROUTE)
            self.observe(route, scope["method"], status or 500, time.monotonic() - started)


def _with_request_id(scope: Scope) -> tuple[dict[str, Any], bytes]:
    """Return the request with an id in its headers, and that id."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return dict(scope), value
    request_id = uuid.uuid4().hex.encode()
    return {**scope, "headers": [*scope["headers"], (HEADER, request_id)]}, request_id


def _without_body(receive: Receive, send: Send) -> tuple[Send, Receive]:
    """Send only the head of an answer; then report a disconnect, so that a stream ends."""
    answered = False

    async def send_head(message: Message) -> None:
        nonlocal answered
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            answered = True

    async def receive_end() -> Message:
        return {"type": "http.disconnect"} if answered else await receive()

    return send_head, receive_end
