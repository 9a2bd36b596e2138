"""Pass requests on to the first server process, which tells what must be one truth.

Generating and tokenizing are done here; the record, metrics, the page and the state there.
"""

from __future__ import annotations

import asyncio

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.http.errors import unavailable
from engine.server.http.shapes import failure_response

HERE = ("/v1/", "/tokenize", "/detokenize")
"""Beginnings of the paths that each process serves itself."""
RETRY_AFTER_S = 1
_PIECE = 2**16
_OF_A_CONNECTION = {b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"upgrade"}


class Relay:
    """Wrap the application. `address`: the Unix socket of the first process."""

    def __init__(self, app: ASGIApp, address: str, root_path: str):
        self.app = app
        self.address = address
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_here(scope):
            await self.app(scope, receive, send)
            return
        try:
            reader, writer = await asyncio.open_unix_connection(self.address, limit=_PIECE)
        except OSError:
            error = unavailable("The server is ending.", RETRY_AFTER_S)
            await failure_response(error, scope)(scope, receive, send)
            return
        try:
            await self._ask(scope, receive, writer)
            answering = asyncio.ensure_future(_answer(reader, send))
            leaving = asyncio.ensure_future(_until_left(receive))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            leaving.cancel()
            done = await asyncio.gather(answering, leaving, return_exceptions=True)
            if isinstance(done[0], Exception):  # the first process ended within its answer
                raise done[0]
        finally:
            writer.close()

    def _is_here(self, scope: Scope) -> bool:
        return get_route_path({**scope, "root_path": self.root_path}).startswith(HERE)

    async def _ask(self, scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
        """Send the request, with its whole body."""
        body = bytearray()
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1", b"connection: close"]
        for name, value in scope["headers"]:
            if name not in _OF_A_CONNECTION and name != b"content-length":
                lines.append(name + b": " + value)
        lines.append(b"content-length: %d" % len(body))
        writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        await writer.drain()


async def _answer(reader: asyncio.StreamReader, send: Send) -> None:
    """Pass on an answer of our own server, as it comes."""
    status = int((await reader.readline()).split(b" ", 2)[1])
    headers, is_chunked, left = [], False, -1
    while line := (await reader.readline()).rstrip(b"\r\n"):
        name, _, value = line.partition(b": ")
        is_chunked = is_chunked or name.lower() == b"transfer-encoding"
        if name.lower() == b"content-length":
            left = int(value)
        if name.lower() not in _OF_A_CONNECTION:
            headers.append((name, value))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    while True:
        if is_chunked:
            left = int((await reader.readline()).split(b";")[0], 16)
            piece = (await reader.readexactly(left + 2))[:-2]
            more = left > 0
        else:
            piece = await reader.read(_PIECE if left < 0 else min(left, _PIECE))
            left -= len(piece)
            more = bool(piece) and left != 0
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        if not more:
            return


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
