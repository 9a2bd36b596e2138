"""Limit the size of a request's body, and unpack gzip.

A plain ASGI wrapper: it sees a body as it arrives, before any of it is parsed.
"""

from __future__ import annotations

import asyncio
import zlib

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.http.errors import ApiError
from engine.server.http.shapes import failure_response

PIECE_BYTES = 2**20
"""Bytes unpacked at once, in a millisecond or two; between pieces other requests get a turn."""


class BodyLimit:
    """Answer 413 to a body of more than `max_bytes`.

    It makes no difference whether the body states its length, comes in chunks, or grows while it is
    unpacked.
    """

    def __init__(self, app: ASGIApp, max_bytes: int):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > self.max_bytes):
            await failure_response(self._error(int(length[:18])), scope)(scope, receive, send)
            return
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding in ("gzip", "x-gzip"):
            receive = Unpacked(receive)
        elif coding not in ("identity", ""):
            message = f"Content-Encoding is {coding!r}; this server reads gzip, and plain bodies."
            await failure_response(ApiError(415, message), scope)(scope, receive, send)
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


class Unpacked:
    """Unpack a gzip body, at most one piece at a time. Raises `HTTPException` 400.

    Used in place of `receive`.
    """

    def __init__(self, receive: Receive):
        self._receive = receive
        self._unpacker = zlib.decompressobj(wbits=31)  # gzip
        self._packed = b""
        self._is_full = False  # the last piece was full, so the unpacker may hold more
        self._is_last = False  # the whole packed body has arrived

    async def __call__(self) -> Message:
        while not self._packed and not self._is_full:
            if self._is_last:
                return await self._receive()  # only the client's disconnect can come
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            self._packed = message.get("body", b"")
            self._is_last = not message.get("more_body", False)
            if self._is_last:
                break
        body = self._unpack()
        await asyncio.sleep(0)
        more = bool(self._packed) or self._is_full or not self._is_last
        if not more and not self._unpacker.eof:
            raise HTTPException(400, "The body ends before its gzip data does.")
        return {"type": "http.request", "body": body, "more_body": more}

    def _unpack(self) -> bytes:
        try:
            body = self._unpacker.decompress(self._packed, PIECE_BYTES)
        except zlib.error as error:
            raise HTTPException(400, f"The body is no valid gzip: {error}.") from None
        if self._unpacker.unused_data:
            raise HTTPException(400, "The body goes on after the end of its gzip data.")
        self._packed = self._unpacker.unconsumed_tail
        self._is_full = len(body) == PIECE_BYTES and not self._unpacker.eof
        return body
