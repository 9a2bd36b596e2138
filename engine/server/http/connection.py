"""Limit what a connection may send before its key is checked: headers, and time.

uvicorn reads HTTP; this file adds the limits that it lacks. A client that exceeds one gets an error
in the usual shape, and the connection ends.
"""

from __future__ import annotations

import asyncio
import http
import sys
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from engine.server.http.errors import ApiError

BODY = "glasshouse.body"
"""The key of a request's scope that has the `DirectBody` of its answer."""


class DirectBody:
    """Write an answer's body to its connection, past the application's layers and without a wait.

    Use it after the answer's start and before its end was sent.
    """

    __slots__ = ("_cycle", "_flow", "_is_chunked", "_transport", "last_s")

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self._transport, self._flow = cycle.transport, cycle.flow  # one cycle has one of each
        self._is_chunked: bool | None = None  # known once the answer has begun
        self.last_s = 0.0  # time of the last piece, of `time.monotonic`

    def write(self, data: bytes, now: float) -> bool:
        """Write a piece, unless the client has left; return whether the connection takes more now.

        When it doesn't, wait before the next piece, as `send` does: what isn't sent yet lies in
        this process's memory.
        """
        transport = self._transport
        if self._is_chunked is None:
            if self._cycle.disconnected:  # an error was sent in place of the answer
                return False
            self._is_chunked = bool(self._cycle.chunked_encoding)
        if transport.is_closing():
            return False
        self.last_s = now
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        return not self._flow.write_paused


class BoundedConnection(HttpToolsProtocol):
    """Limit one connection. Its clock runs while a request is being sent, not between two
    requests."""

    MOST_HEADER_BYTES = 65_536  # the request line and all headers of a request
    HEAD_S = 20.0  # for all of them to arrive, from the start of the connection or of their request
    BODY_S = 120.0  # for the whole body to arrive
    LINGER_S = 1.0  # a client that still sends may read its error for this long

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._awaited: str | None = "head"  # the part of a request that isn't complete
        self._timed: str | None = None  # the part that the clock runs for
        self._clock: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._refused = False
        self._data = b""  # that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._awaited is None:
            self._awaited = "head"  # the next request begins
        if self._awaited == "head":
            self._head_bytes += len(data)
        self._data = data
        super().data_received(data)
        if self._awaited == "head" and self._head_bytes > self.MOST_HEADER_BYTES:
            self._refuse_head()
        if self._awaited != self._timed:
            self._set_clock()

    # ------------------------------------------------------------------------------ the parser's

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._awaited = "head"

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        hosts = sum(name == b"host" for name, _ in self.headers)
        if size > self.MOST_HEADER_BYTES:
            self._refuse_head()
        elif hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._refuse(400, f"The request has {hosts} Host headers; HTTP wants exactly one.")
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(400, "CONNECT is for proxies, and this is none.")
        elif not self.parser.should_upgrade():
            self._awaited = "body"
            super().on_headers_complete()
            # In time: the application begins at the loop's next turn.
            self.scope[BODY] = DirectBody(self.cycle)  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser reads no body
        self._awaited = None
        self._head_bytes = 0
        if not self._refused:
            super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Read a request that offers another protocol as one that doesn't.

        A server may ignore the offer (RFC 9110, 7.8). Java's client makes it with each first
        request, for HTTP/2. The parser, which has read the head, would leave the body out.
        """
        stopped = sys.exception()
        if self._refused or not isinstance(stopped, httptools.HttpParserUpgrade):
            return
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._data = b"\r\n".join([*lines, b"", b""]) + self._data[stopped.args[0] :]
        super().data_received(self._data)

    # ------------------------------------------------------------------------------ refusing

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse_head(self) -> None:
        limit = self.MOST_HEADER_BYTES
        self._refuse(431, f"The headers have more than {limit:,} bytes, which is the most allowed.")

    def _set_clock(self) -> None:
        self._stop_clock()
        self._timed = self._awaited
        if self._awaited is not None and not self._refused:
            seconds = self.HEAD_S if self._awaited == "head" else self.BODY_S
            self._clock = self.loop.call_later(seconds, self._too_slow)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        part, seconds = (
            ("headers", self.HEAD_S) if self._awaited == "head" else ("body", self.BODY_S)
        )
        self._refuse(408, f"The request's {part} did not come within {seconds:g} s.")

    def _may_answer(self) -> bool:
        """Return whether a client would take an error now for the answer to the request it is
        about."""
        cycle = self.cycle
        if cycle is None:
            return True
        if self._awaited == "head":
            return cycle.response_complete  # of the previous request
        if cycle.response_started:
            return False
        cycle.disconnected = True  # whoever works on the request learns that the client is gone
        cycle.message_event.set()
        return True

    def _refuse(self, status: int, message: str) -> None:
        """Send an error, unless another answer is being sent, and end the connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_clock()
        if not self._may_answer():
            self.transport.close()
            return
        body = msgspec.json.encode(ApiError(status, message).body())
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        # Closing immediately would reset the connection if the client still sends, and lose the
        # error.
        self.flow.resume_reading()
        self.loop.call_later(self.LINGER_S, self.transport.close)
