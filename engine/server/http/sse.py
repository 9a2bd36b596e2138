"""Send a stream of JSON chunks over HTTP as server-sent events, and keep it alive.

    data: {json}\\n\\n   for each chunk; in newer APIs `event: NAME\\n` stands before it
    : waiting\\n\\n      a comment, when nothing was sent for a while, also before the first chunk
    data: [DONE]\\n\\n   always last, after an error chunk too; newer APIs have a last event

Proxies end connections that are silent for too long (100 s were seen): hence the comments.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from loguru import logger
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.server.http.connection import BODY, DirectBody
from engine.server.http.errors import ApiError, ClientLeft

T = TypeVar("T")


class Direct(Protocol):
    """Send to the connection itself, past the layers of the application."""

    connection: DirectBody
    """Takes events that are framed already."""

    def push(self, chunks: list[Any]) -> bool:
        """Send chunks, as one piece; return whether the connection takes more now."""


Batches = Callable[[Direct | None], AsyncIterator[list[Any]]]

HEARTBEAT_S = 10.0
HEARTBEAT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
_LINE_ENDS = tuple((mark.encode(), b"\\u%04x" % ord(mark)) for mark in "\x85\u2028\u2029")


def frame(chunks: Sequence[bytes]) -> bytes:
    """Frame JSON documents, at least one, as events in one piece.

    Many clients split a stream with a function that knows more line ends than SSE does; U+0085,
    U+2028 and U+2029 within a text would cut its JSON in two, so they are written as escapes.
    """
    events = b"data: " + b"\n\ndata: ".join(chunks) + b"\n\n"
    return events if events.isascii() else without_line_ends(events)


def without_line_ends(events: bytes) -> bytes:
    """Return events with the line ends that only some clients know written as escapes."""
    for raw, escaped in _LINE_ENDS:
        events = events.replace(raw, escaped)
    return events


def named_frame(events: Iterable[tuple[str, bytes]]) -> bytes:
    """Frame JSON documents as events with names, in one piece."""
    return b"".join([b"event: " + name.encode() + b"\n" + frame([chunk]) for name, chunk in events])


class Framing(NamedTuple):
    """Say how an API's stream is written: its chunks, a failure in the middle, and its end."""

    join: Callable[[Sequence[Any]], bytes]
    failure: Callable[[ApiError], list[Any]]  # its chunks
    end: bytes


DATA_ALONE = Framing(frame, lambda error: [msgspec.json.encode(error.body())], DONE)


class EventStream(Response):
    """Send what `batches` yields (each a list of chunks, as `framing` takes them) as it comes.

    `batches` is called with the way to send immediately, or with None where there is no such way;
    both ways may be used in turn. The call of a stream returns at the end, when the client
    disconnects, and on an error.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        batches: Batches,
        heartbeat_s: float = HEARTBEAT_S,
        framing: Framing = DATA_ALONE,
    ):
        self.batches = batches
        self.heartbeat_s = heartbeat_s
        self.framing = framing
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        body = scope.get(BODY)
        if body is not None:
            self.connection = body
        self._is_direct = body is not None
        self._last_sent = time.monotonic()
        sending = asyncio.create_task(self._send_all(send))
        watching = asyncio.create_task(_client_left(receive))
        beating = asyncio.create_task(self._beat(send))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
            beating.cancel()
            if sending.done():
                sending.result()
                end = {"type": "http.response.body", "body": self.framing.end, "more_body": False}
                await send(end)
        finally:
            await _cancelled(sending, watching, beating)

    async def _send_all(self, send: Send) -> None:
        join, failure = self.framing.join, self.framing.failure
        try:
            async for chunks in self.batches(self if self._is_direct else None):
                await self._send(send, join(chunks))
        except ApiError as error:
            await self._send(send, join(failure(error)))
        except Exception as error:
            logger.error("A stream failed:\n{}", "".join(traceback.format_exception(error)))
            told = ApiError(500, "The server failed at this request; its log says why.")
            await self._send(send, join(failure(told)))

    def push(self, chunks: list[Any]) -> bool:
        """Write chunks to the connection itself: nothing between here and there changes them."""
        return self.connection.write(self.framing.join(chunks), time.monotonic())

    async def _send(self, send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._last_sent = time.monotonic()

    async def _beat(self, send: Send) -> None:
        while True:
            last_s = (
                max(self._last_sent, self.connection.last_s) if self._is_direct else self._last_sent
            )
            silent_s = time.monotonic() - last_s
            if silent_s >= self.heartbeat_s:
                await self._send(send, HEARTBEAT)
            else:
                await asyncio.sleep(self.heartbeat_s - silent_s)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, unless the client disconnects first.

    Then `work` is cancelled and `ClientLeft` raised. Call it when the request's body has been read:
    after that `receive` only reports a disconnect.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        await _cancelled(working, watching)


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these tasks and wait until they have ended, however they do."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
