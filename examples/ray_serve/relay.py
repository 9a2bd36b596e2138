"""Pass a request on to a replica's own server, and its answer back in few pieces.

What Ray does for a piece costs more than what our server does for a token (docs/SCALING.md), so
events of a stream that come soon after one another cross it together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx

Headers = list[tuple[bytes, bytes]]

INTERVAL_S = 0.05
"""Between two pieces of one stream, of which there are at most 20 a second: text still flows."""
EVENT_END = b"\n\n"
ONE_HOP = {  # headers that belong to a connection and not to what it carries
    b"connection", b"content-length", b"date", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip


class EngineLost(Exception):
    """Report that a replica's server ended, or can't be reached."""


@dataclass(frozen=True)
class Asked:
    """Hold a request on its way to a replica."""

    method: str
    target: str  # path and query
    headers: Headers
    body: bytes = b""
    prefix: bytes = b""  # what its prompt begins with; empty: any replica will do
    replica: str = ""  # the only one that may answer; empty: any


@dataclass(frozen=True)
class Head:
    """Hold the beginning of an answer, or all of one that isn't a stream."""

    status: int
    headers: Headers
    body: bytes | None  # None: events follow


def end_to_end(headers: Headers) -> Headers:
    """Return the headers that a proxy passes on."""
    return [(name, value) for name, value in headers if name.lower() not in ONE_HOP]


async def relay(
    client: httpx.AsyncClient, asked: Asked, interval_s: float = INTERVAL_S
) -> AsyncIterator[Head | bytes]:
    """Yield a server's answer: its head, and then the events of a stream.

    Raises `EngineLost` when the server ends before its answer is complete. Events that came
    before are yielded first; a part of an event never is, so that an error can follow.
    """
    request = client.build_request(
        asked.method, asked.target, headers=end_to_end(asked.headers), content=asked.body
    )
    try:
        response = await client.send(request, stream=True)
        try:
            headers = end_to_end(response.headers.raw)
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                yield Head(response.status_code, headers, None)
                async for events in coalesced(response.aiter_raw(), interval_s):
                    yield events
            else:
                body = b"".join([chunk async for chunk in response.aiter_raw()])
                yield Head(response.status_code, headers, body)
        finally:
            await response.aclose()
    except httpx.TransportError as error:
        raise EngineLost(f"{type(error).__name__}: {error}") from None


async def coalesced(chunks: AsyncIterator[bytes], interval_s: float) -> AsyncIterator[bytes]:
    """Yield the whole events that have come: the first at once, then those of an interval together.

    Raises what `chunks` raises, behind the last whole event.
    """
    come = bytearray()
    news = asyncio.Event()
    clock = asyncio.get_running_loop().time

    async def read() -> None:
        # To wake for each chunk costs more than to parse it: they gather in the connection, too.
        rests_at = 0.0
        try:
            async for chunk in chunks:
                come.extend(chunk)
                news.set()
                if clock() >= rests_at:
                    await asyncio.sleep(interval_s)
                    rests_at = clock() + interval_s / 4
        finally:
            news.set()

    reading = asyncio.create_task(read())
    try:
        while not reading.done():
            await news.wait()
            news.clear()
            if events := _take_events(come):
                yield events
                await asyncio.wait({reading}, timeout=interval_s)
        if events := _take_events(come):
            yield events
        reading.result()
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _take_events(come: bytearray) -> bytes:
    end = come.rfind(EVENT_END) + len(EVENT_END)
    if end < len(EVENT_END):
        return b""
    events = bytes(come[:end])
    del come[:end]
    return events
