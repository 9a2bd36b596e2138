"""Serve GET /v1/models: the one loaded model, under each of its names.

Each answer has what clients of OpenAI's API read in it, and what those of Anthropic's read.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from engine.server.answering.answer_schemas import ModelCard, ModelList
from engine.server.http.answers import json_response
from engine.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    created = datetime.now(UTC)

    def card(name: str) -> dict[str, Any]:
        kv = service.client.kv
        return {
            "id": name,
            "object": "model",
            "type": "model",
            "display_name": name,
            "created": int(created.timestamp()),
            "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "owned_by": "glasshouse",
            "root": service.config.model,  # the loaded model: clients load its tokenizer from there
            "parent": None,
            "max_model_len": None if kv is None else kv.max_model_len,
        }

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        names = service.config.served_model_name
        pages = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        return json_response({"object": "list", "data": [card(name) for name in names], **pages})

    @routes.get("/v1/models/{name:path}", response_model=ModelCard)
    async def model(name: str) -> Response:
        service.check_model(name)
        return json_response(card(name))

    return routes
