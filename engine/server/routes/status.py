"""Serve the routes for operators: health, load, and what the server does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response, StreamingResponse

from engine import __version__
from engine.server.http.answers import json_response
from engine.server.link.engine_client import RETRY_AFTER_S
from engine.server.record.record_filter import lines_about
from engine.server.service import Service
from engine.server.telemetry.series import CONTENT_TYPE
from engine.trace.files import to_json

LINES_AT_ONCE = 1000
MOST_REQUESTS = 100  # in one query


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/health")
    @routes.get("/ping")
    @routes.post("/ping")
    async def health() -> Response:
        """Answer 200 when requests are taken.

        Answer 503 while the model loads, at the end, and when the engine is gone.
        """
        state = service.state
        body = {
            "status": state,
            "detail": service.detail,
            "model": service.config.model_name,
            "engine_silent_s": round(service.client.silent_s, 1),  # while it has work
        }
        return Response(
            msgspec.json.encode(body),
            status_code=200 if state == "ready" else 503,
            headers=None if state == "ready" else {"Retry-After": str(RETRY_AFTER_S)},
            media_type="application/json",
        )

    @routes.get("/version")
    async def version() -> Response:
        return json_response({"version": __version__, "engine": "glasshouse"})

    @routes.get("/load")
    async def load() -> Response:
        stats, others = service.client.stats, await service.counts_of_others()
        return json_response(
            {
                "server_load": service.num_open + sum(other.num_open for other in others),
                "num_requests_running": stats.num_running,
                "num_requests_waiting": service.client.num_waiting
                + sum(other.num_unbooked for other in others),
                "max_num_seqs": service.config.max_num_seqs,
                "max_num_queued_reqs": service.config.max_num_queued_reqs,
                "kv_blocks": {
                    "total": stats.blocks_total,
                    "used": stats.blocks_used,
                    "cached_free": stats.blocks_cached_free,
                    "never_used": stats.blocks_total - stats.blocks_used - stats.blocks_cached_free,
                },
            }
        )

    @routes.get("/metrics")
    async def metrics() -> Response:
        others = await service.counts_of_others()
        lost = sum(other.num_events_lost for other in others)
        service.metrics.events_lost.set(service.recorder.events_lost + lost)
        pids = [] if service.others is None else service.others.pids
        text = service.metrics.text([other.series for other in others if other.series], pids)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    @routes.get("/trace")
    def trace(
        request_id: Annotated[list[str] | None, Query(max_length=MOST_REQUESTS)] = None,
    ) -> Response:
        """Return the latest events of both processes as JSON lines. They may show people's text.

        If older ones are gone, `engine.snapshot` comes first and holds their result.
        `?request_id=A&request_id=B`: only those about these requests, with the steps that computed
        for them.
        """
        before, lines = service.hub.record()
        if request_id:
            begun = [to_json(event) for event in before.standing] if before else []
            lines = list(lines_about([*begun, *lines], request_id))
        elif before:
            lines = [to_json(before), *lines]

        def parts() -> Iterator[bytes]:
            for start in range(0, len(lines), LINES_AT_ONCE):
                yield b"\n".join(lines[start : start + LINES_AT_ONCE]) + b"\n"

        return StreamingResponse(
            parts(),
            media_type="application/jsonl",
            headers={"Content-Disposition": 'attachment; filename="glasshouse-trace.jsonl"'},
        )

    return routes
