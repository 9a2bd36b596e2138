"""Refuse, by name, routes that clients of such APIs know and this server doesn't have.

They are a 400 and not a 404: a proxy takes the 404 of a known route for a dead server and stops
using it (litellm for its cool-down time).
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from engine.server.http.errors import bad_request
from engine.server.openapi import STREAMS

EMBEDDINGS = (
    "The hidden states of a model that writes text are no embeddings: those come from models that "
    "are trained for it, such as sentence-transformers', and this engine runs none. Use a server "
    "for them."
)
TEXT = f"It makes text from text, at {', '.join(STREAMS)}."

ABSENT = {
    "/v1/embeddings": EMBEDDINGS,
    "/v1/moderations": TEXT,
    "/v1/audio/speech": TEXT,
    "/v1/audio/transcriptions": TEXT,
    "/v1/audio/translations": TEXT,
    "/v1/images/generations": TEXT,
    "/v1/images/edits": TEXT,
    "/v1/rerank": TEXT,
    "/v2/rerank": TEXT,
    "/rerank": TEXT,
    "/v1/score": TEXT,
    "/score": TEXT,
    "/pooling": TEXT,
    "/classify": TEXT,
}


def router(_service: object) -> APIRouter:
    routes = APIRouter()
    for path, instead in ABSENT.items():
        _refuse(routes, path, f"This server doesn't serve {path}. {instead}")
    return routes


def _refuse(routes: APIRouter, path: str, message: str) -> None:
    @routes.post(path, include_in_schema=False)
    async def refused() -> Response:
        raise bad_request(message)
