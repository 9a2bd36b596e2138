"""Pass requests on to the first server process, which tells what must be one truth.

Texts are generated and tokenized in each process. The record, metrics, the page, the class, the
answers that /v1/responses keeps and the server's state are the first one's.
"""

from __future__ import annotations

import asyncio

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.config import EngineConfig
from engine.server.http.connection import BoundedConnection
from engine.server.http.errors import unavailable
from engine.server.http.shapes import failure_response

HERE = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/tokenize", "/detokenize")
"""Beginnings of the paths that each process serves itself."""
RESPONSES = "/v1/responses"
CLIENT, SCHEME = b"glasshouse-client", b"glasshouse-scheme"
"""The headers that tell the first process who asks, and by http or https.

They count only on its own Unix socket, and those of a client are not passed on.
"""
RETRY_AFTER_S = 1
_PIECE = 2**16
_OF_A_CONNECTION = {
    b"connection", b"keep-alive", b"transfer-encoding", b"expect", b"upgrade",
}  # fmt: skip
_NOT_ASKED = _OF_A_CONNECTION | {CLIENT, SCHEME}
_NOT_ANSWERED = _OF_A_CONNECTION | {b"date"}  # each process writes its own


class Relay:
    """Wrap the application. `address`: the Unix socket of the first process."""

    def __init__(self, app: ASGIApp, address: str, config: EngineConfig):
        self.app = app
        self.address = address
        self.root_path = config.root_path
        # Without a store, an answer of that route is like any other.
        self.here = HERE if config.response_store_bytes else (*HERE, RESPONSES)
        self.num_asking = 0  # passed requests that may compute something

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_here(scope):
            await self.app(scope, receive, send)
            return
        asks = scope["method"] == "POST"
        self.num_asking += asks
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.num_asking -= asks

    def _is_here(self, scope: Scope) -> bool:
        return get_route_path({**scope, "root_path": self.root_path}).startswith(self.here)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self.address, limit=_PIECE)
        except OSError:
            await _refuse(scope, receive, send)
            return
        asking = asyncio.ensure_future(_ask(scope, receive, writer))  # ends when the client leaves
        answering = asyncio.ensure_future(_answer(reader, send, scope["method"]))
        try:
            await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and isinstance(asking.exception(), ConnectionError):
                await asyncio.wait({answering})  # it was refused before it was read to its end
        finally:
            asking.cancel()
            answering.cancel()
            asked, answered = await asyncio.gather(asking, answering, return_exceptions=True)
            writer.transport.abort()  # without waiting until the first process takes what is left
        if isinstance(answered, _Gone):
            await _refuse(scope, receive, send)
        elif isinstance(answered, Exception):  # the first process ended within its answer
            raise answered
        elif isinstance(asked, Exception) and not isinstance(asked, ConnectionError):
            raise asked


class _Gone(Exception):
    """Report that the first process ended before it answered."""


class RelayedConnection(BoundedConnection):
    """Take one request that another process passes on, as its client's."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        for name, value in self.headers:
            if name == CLIENT:
                self.scope["client"] = (value.decode("latin-1"), 0)
            elif name == SCHEME:
                self.scope["scheme"] = value.decode("latin-1")


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = unavailable("The server is ending.", RETRY_AFTER_S)
    await failure_response(error, scope)(scope, receive, send)


async def _ask(scope: Scope, receive: Receive, writer: asyncio.StreamWriter) -> None:
    """Send a request, its body as it comes; return when the client has left."""
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    # The connection is kept until it is closed here: a first process that closed it after an early
    # answer, with a part of the body unread, would reset it, and the answer could be lost.
    lines = [scope["method"].encode() + b" " + target + b" HTTP/1.1"]
    lines.append(SCHEME + b": " + scope["scheme"].encode("latin-1"))
    if scope["client"]:
        lines.append(CLIENT + b": " + scope["client"][0].encode("latin-1"))
    names = set()
    for name, value in scope["headers"]:
        names.add(name)
        if name not in _NOT_ASKED:
            lines.append(name + b": " + value)
    if b"host" not in names:  # HTTP/1.0
        lines.append(b"host: glasshouse")
    in_chunks = b"transfer-encoding" in names
    if in_chunks:
        lines.append(b"transfer-encoding: chunked")
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    while (message := await receive())["type"] == "http.request":
        body = message.get("body", b"")
        if in_chunks and body:
            body = b"%x\r\n%b\r\n" % (len(body), body)
        if in_chunks and not message.get("more_body", False):
            body += b"0\r\n\r\n"
        writer.write(body)
        await writer.drain()


async def _answer(reader: asyncio.StreamReader, send: Send, method: str) -> None:
    """Pass on an answer of our own server, as it comes. Raises `_Gone` if there is none."""
    first_line = await _line(reader)
    if not first_line:
        raise _Gone
    headers, in_chunks, left = [], False, -1
    while line := await _line(reader):
        name, _, value = line.partition(b": ")
        name = name.lower()
        in_chunks = in_chunks or name == b"transfer-encoding"
        if name == b"content-length":
            left = int(value)
        if name not in _NOT_ANSWERED:
            headers.append((name, value))
    status = int(first_line.split(b" ", 2)[1])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    more = method != "HEAD" and status not in (204, 304) and left != 0
    if not more:
        await send({"type": "http.response.body", "body": b""})
    while more:
        if in_chunks:
            left = int((await _line(reader)).split(b";")[0], 16)
            piece = (await reader.readexactly(left + 2))[:-2]
            more = left > 0
        else:
            piece = await reader.read(_PIECE if left < 0 else min(left, _PIECE))
            left -= len(piece)
            more = bool(piece) and left != 0
        await send({"type": "http.response.body", "body": piece, "more_body": more})


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Return the next line without its end, nothing at the end of all."""
    try:
        return (await reader.readline()).rstrip(b"\r\n")
    except ConnectionError:
        return b""
