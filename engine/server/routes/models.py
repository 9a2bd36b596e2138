"""Serve GET /v1/models: the one loaded model, under each of its names."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from engine.server.answering.answer_schemas import ModelCard, ModelList
from engine.server.http.answers import json_response
from engine.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        kv = service.client.kv
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "glasshouse",
            "root": service.config.model,  # the loaded model: clients load its tokenizer from there
            "parent": None,
            "max_model_len": None if kv is None else kv.max_model_len,
        }

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        names = service.config.served_model_name
        return json_response({"object": "list", "data": [card(name) for name in names]})

    @routes.get("/v1/models/{name:path}", response_model=ModelCard)
    async def model(name: str) -> Response:
        service.check_model(name)
        return json_response(card(name))

    return routes
