"""Serve the record, as it is now and as it grows. `GET /trace`, the download, is in `status.py`.

All of these need the API key when one is set: the record may show people's text.
"""

from __future__ import annotations

import uuid

import msgspec
from fastapi import APIRouter, Header, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.http.sse import EventStream
from engine.server.record.viewers import Viewers
from engine.server.service import Service
from engine.trace.life import life_of, requests_of
from engine.trace.names import Names
from engine.trace.perfetto import to_perfetto
from engine.trace.why import why_in_words, why_slow

MOST_IDS = 2000  # token ids in one query
MOST_DIGITS = 18  # of a number in an address: fewer than 64 bits
LARGEST_INTEGER = 10**MOST_DIGITS


class RecordStream(EventStream):
    """Send an event stream whose pieces are framed already: they have names and ids."""

    def __init__(self, viewers: Viewers, since: int | None, heartbeat_s: float):
        super().__init__(lambda direct: viewers.frames(since), heartbeat_s)  # type: ignore[arg-type,return-value]
        self.viewers = viewers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the viewer while it watches. Raises `ApiError` 503 when too many watch."""
        try:
            self.viewers.join()
        except OverflowError as error:
            raise ApiError(503, f"{error}.") from None
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.viewers.leave()

    async def _send_all(self, send: Send) -> None:
        async for piece in self.batches(None):
            await self._send(send, piece)  # type: ignore[arg-type]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    window = service.hub.window
    # Positions start again with each run of the server, so an id names the run, too.
    viewers = Viewers(
        window, uuid.uuid4().hex[:8], lambda: service.draining and service.num_open == 0
    )

    @routes.get("/trace/stream")
    async def stream(
        since: str | None = Query(None), last_event_id: str | None = Header(None)
    ) -> Response:
        """Stream the record as it grows, as server-sent events of two kinds.

        `snapshot` {position, skipped, snapshot}: start from this state; `skipped` events were not
        sent. `events` {position, events, lines}: the events after `position`, and the log's lines
        about them. Ids are "RUN-POSITION"; send the last one as Last-Event-ID (or ?since=) to
        continue there.
        """
        _check_recording(service)
        position = _position(last_event_id or since, viewers.epoch)
        return RecordStream(viewers, position, service.heartbeat_s)

    @routes.get("/trace/viewers")
    async def watching() -> Response:
        """Count the viewers, and the events that they missed because they were too slow."""
        return json_response(
            {"num_viewers": viewers.num_viewers, "num_skipped": viewers.num_skipped}
        )

    @routes.get("/trace/state")
    def state(step: int | None = Query(None, ge=0, le=LARGEST_INTEGER)) -> Response:
        """Return the replay's state right after the last event of `step`, or now."""
        service.hub.recorder.settle()
        try:
            return json_response(window.state_at(step))
        except KeyError as error:
            raise ApiError(404, f"{error.args[0]}.", "step") from None

    @routes.get("/trace/perfetto")
    def perfetto() -> Response:
        """Return the record as Chrome Trace Event JSON, for https://ui.perfetto.dev."""
        service.hub.recorder.settle()
        return Response(
            to_perfetto(window.events()),
            media_type="application/json",
            headers={"Content-Disposition": 'attachment; filename="glasshouse-perfetto.json"'},
        )

    @routes.get("/trace/requests")
    def requests() -> Response:
        """List the requests of the record, oldest first."""
        service.hub.recorder.settle()
        return json_response({"requests": requests_of(window.events())})

    @routes.get("/trace/requests/{request_id}")
    def life(request_id: str) -> Response:
        """Return the life of one request: its waits, what each step did for it, its end."""
        service.hub.recorder.settle()
        found = life_of(window.events(), request_id)
        if found is None:
            raise ApiError(404, f"The record has no request {request_id!r} (any more).", "id")
        return json_response(found)

    @routes.get("/trace/why/{request_id}")
    def why(request_id: str) -> Response:
        """Return why a request was slow: the causes of its time in nanoseconds, and in words.

        The parts sum to the whole.
        """
        service.hub.recorder.settle()
        events = window.events()
        told = why_slow(events, request_id)
        if told is None:
            raise ApiError(404, f"The record has no request {request_id!r} (any more).", "id")
        return json_response({**told, "lines": why_in_words(told, Names.of(events))})

    @routes.get("/trace/tokens")
    def tokens(ids: str = Query("")) -> Response:
        """Return the texts of token ids, `?ids=17,4`, because events have only ids."""
        if service.config.trace_text == "off":
            raise ApiError(403, "The server was started with --trace-text off: it shows no text.")
        parts = [part for part in ids.split(",") if part]
        if len(parts) > MOST_IDS or not all(_is_token_id(part) for part in parts):
            raise ApiError(400, f"ids must be at most {MOST_IDS} token ids with commas.", "ids")
        texts = service.ready_text().tokenizer.texts([int(part) for part in parts])
        return Response(msgspec.json.encode(texts), media_type="application/json")

    return routes


def _check_recording(service: Service) -> None:
    if service.config.trace == "off":
        raise ApiError(404, "Nothing is recorded: the server was started with --trace off.")


def _is_token_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS


def _position(identity: str | None, epoch: str) -> int | None:
    """Return the position in an event id; None if there is none, or if it is another run's."""
    if not identity:
        return None
    run, dash, number = identity.rpartition("-")
    if not number.isdecimal() or len(number) > MOST_DIGITS or (dash and run != epoch):
        return None
    return int(number)
