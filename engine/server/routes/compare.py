"""Set the server's record beside another one: the page of two rooms, made on demand.

`POST /trace/compare` needs the API key, as all of the record does. The pages that it makes are
opened by a browser, which sends no key: their address has a name that can't be guessed.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from engine.server.http.answers import json_response
from engine.server.http.errors import ApiError
from engine.server.service import Service
from engine.trace import events as ev
from engine.trace.diff import where_they_part
from engine.trace.events import Event
from engine.trace.files import RecordError, read_lines
from engine.trace.outcome import outcome, what_followed
from engine.trace.side_by_side import side_by_side

MOST_EVENTS = 50_000  # of each record: some ten seconds, and pages that a browser still opens
MOST_KEPT = 2  # comparisons; an older one is forgotten
OURS = "this server"
HEADERS = {
    "Cache-Control": "no-store",  # the pages may show people's text
    "Content-Security-Policy": "frame-ancestors 'self'",  # the rest is in the pages themselves
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    kept: OrderedDict[str, dict[str, bytes]] = OrderedDict()
    making = threading.Lock()

    @routes.post("/trace/compare")
    async def compare(
        request: Request, name: str = Query("the other record", max_length=200)
    ) -> Response:
        """Compare this server's record with the one in the body (JSON lines).

        `page` is the address of both side by side, at the first decision that differs, which `text`
        tells; null if they make the same decisions.
        """
        if service.config.trace == "off":
            raise ApiError(404, "Nothing is recorded: the server was started with --trace off.")
        body = await request.body()
        if not making.acquire(blocking=False):
            raise ApiError(503, "Another comparison is being made. Try again in a few seconds.")
        try:
            text, files = await run_in_threadpool(_compare, service, body, name)
        finally:
            making.release()
        if files is None:
            return json_response({"page": None, "text": text})
        token = secrets.token_urlsafe(24)
        kept[token] = files
        while len(kept) > MOST_KEPT:
            kept.popitem(last=False)
        return json_response({"page": f"compared/{token}/index.html", "text": text})

    @routes.get("/compared/{token}/{file}", include_in_schema=False)
    async def part(token: str, file: str) -> Response:
        files = kept.get(token, {})
        if file not in files:
            raise ApiError(404, "This comparison is not kept any more. Compare again on the page.")
        return Response(files[file], media_type="text/html", headers=HEADERS)

    return routes


def _compare(service: Service, body: bytes, name: str) -> tuple[str, dict[str, bytes] | None]:
    """Return the difference in words, and the files of the page; None if there is none."""
    try:
        other = list(read_lines(body.splitlines(keepends=True), name))
    except RecordError as error:
        raise ApiError(400, f"{error}.") from None
    service.hub.recorder.settle()
    own = service.hub.window.events()
    for events, whose in ((own, OURS), (other, name)):
        _check(events, whose)
    found = where_they_part(own, other)
    if found is None:
        return f"{name} and this server's record make the same decisions", None
    followed = what_followed(outcome(own), outcome(other))
    return found.text, side_by_side((own, OURS), (other, name), found, followed)


def _check(events: Sequence[Event], whose: str) -> None:
    """Refuse a record that lacks its beginning, or that is too long. Raises ApiError."""
    if not events:
        raise ApiError(400, f"The record of {whose} has no events.")
    if any(isinstance(event, ev.EngineSnapshot) for event in events):
        raise ApiError(
            400,
            f"The record of {whose} has lost its beginning, so nothing before its first event can"
            " be compared. Record with a larger --trace-buffer, or with --trace-file.",
        )
    if len(events) > MOST_EVENTS:
        raise ApiError(
            413,
            f"The record of {whose} has {len(events):,} events; {MOST_EVENTS:,} are compared here"
            " at most. Compare the files: python -m engine.trace diff ONE OTHER -o FOLDER.",
        )
