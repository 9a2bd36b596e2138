"""Answer clients in front of all replicas: every failure is one of our errors.

    /…                  any replica answers; generations go where their beginning is cached
    /replicas/NAME/…    this replica answers: its page, its record, its metrics, its kept answers
    /                   leads to the page of some replica, whose name the address then shows

Each answer names its replica in the header `X-Replica`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from engine.server.http.errors import ApiError
from engine.server.http.shapes import MESSAGES, anthropic_failure, failure_response
from engine.server.http.sse import DONE, frame, named_frame
from examples.ray_serve.prefix import prefix_of
from examples.ray_serve.relay import Asked, Head, end_to_end

Ask = Callable[[Asked], AsyncIterator[Head | bytes]]
"""Yields a replica's answer: its head, then its events. Raises `ApiError`."""

REPLICA = b"x-replica"
REQUEST_ID = b"x-request-id"  # Ray's proxy sets it, in requests and answers
REPLICAS = "/replicas/"
GENERATIONS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", MESSAGES)


async def answer(http: Request, ask: Ask) -> Response:
    """Pass a request to a replica, and make its answer ours."""
    path = http.url.path
    if path == "/":
        return await _to_a_page(http, ask)
    name = ""
    if path.startswith(REPLICAS):
        name, slash, path = path.removeprefix(REPLICAS).partition("/")
        if not slash:
            return RedirectResponse(f"{REPLICAS}{name}/")
        path = f"/{path}"
    body = await http.body()
    asked = Asked(
        http.method,
        quote(path) + (f"?{http.url.query}" if http.url.query else ""),
        http.headers.raw,
        body,
        prefix_of(body) if path in GENERATIONS else b"",
        name,
    )
    parts = ask(asked)
    try:
        head = await anext(parts)
    except ApiError as error:
        return failure_response(error, http.scope)
    assert isinstance(head, Head)
    if head.body is not None:
        response = Response(head.body, head.status)
    else:
        response = StreamingResponse(_events(parts, path, http), head.status)
    _set_headers(response, head)
    return response


async def _to_a_page(http: Request, ask: Ask) -> Response:
    parts = ask(Asked("HEAD", "/", end_to_end(http.headers.raw)))
    try:
        head = await anext(parts)
    except ApiError as error:
        return failure_response(error, http.scope)
    name = dict(head.headers)[REPLICA].decode()
    return RedirectResponse(f"{REPLICAS}{name}/", headers={"Cache-Control": "no-store"})


def _set_headers(response: Response, head: Head) -> None:
    """Give an answer its replica's headers, and the length that Starlette has counted."""
    own = [pair for pair in response.raw_headers if pair[0] == b"content-length"]
    response.raw_headers[:] = [*(pair for pair in head.headers if pair[0] != REQUEST_ID), *own]


async def _events(
    parts: AsyncIterator[Head | bytes], path: str, http: Request
) -> AsyncIterator[bytes]:
    """Yield a replica's events; if it is lost, then an error and the end that clients wait for."""
    try:
        async for part in parts:
            assert isinstance(part, bytes)
            yield part
    except ApiError as error:
        yield _last_events(error, path, http.headers.get("x-request-id", ""))


def _last_events(error: ApiError, path: str, request_id: str) -> bytes:
    if path == MESSAGES:
        told = anthropic_failure(error, request_id)
        return named_frame([("error", msgspec.json.encode(told))])
    if path == "/v1/responses":
        told = {"type": "error", "code": "server_error", "message": error.message, "param": None}
        return named_frame([("error", msgspec.json.encode(told))])
    if path in GENERATIONS:
        return frame([msgspec.json.encode(error.body())]) + DONE
    return b""  # the record: the page connects again by itself
