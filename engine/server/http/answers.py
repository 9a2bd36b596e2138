"""Write JSON: whole answers, and the chunks of streamed ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 2**20
encode_text = msgspec.json.Encoder().encode


class ChunkWriter:
    """Write chunks with the same first keys, `head`, which are encoded once."""

    def __init__(self, head: dict[str, Any]):
        self._head = msgspec.json.encode(head)[:-1] + b","

    def chunk(self, rest: dict[str, Any]) -> bytes:
        """Return `head` with the keys of `rest`, which has at least one."""
        return self._head + msgspec.json.encode(rest)[1:]


class TextChunk:
    """Write pieces of JSON that differ in one text only; what stands around it is made once.

    `make` writes a piece with any text. `finish` is what it does to one that isn't ASCII.
    """

    HOLE = "\0"
    __slots__ = ("_finish", "before", "behind")

    def __init__(self, make: Callable[[str], bytes], finish: Callable[[bytes], bytes] = bytes):
        self.before, self.behind = make(self.HOLE).rsplit(msgspec.json.encode(self.HOLE), 1)
        self._finish = finish

    def chunk(self, text: str) -> bytes:
        if text.isascii():
            return self.before + encode_text(text) + self.behind
        return self.before + self._finish(encode_text(text)) + self.behind


class JsonResponse(Response):
    """Send encoded JSON; a long one in pieces, so that other clients are served between them."""

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= PIECE_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for start in range(0, len(self.body), PIECE_BYTES):
            piece = bytes(self.body[start : start + PIECE_BYTES])
            more = start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})
            await asyncio.sleep(0)


def encoded(parts: Iterable[Any]) -> msgspec.Raw:
    """Encode a list entry by entry: one long call of the encoder would stop all threads."""
    pieces = [b"["]
    for part in parts:
        pieces += (msgspec.json.encode(part), b",")
    pieces[len(pieces) - 1 or 1 :] = [b"]"]  # in place of the last comma
    return msgspec.Raw(b"".join(pieces))  # the only copy


def json_response(body: Any) -> Response:
    return JsonResponse(msgspec.json.encode(body))
