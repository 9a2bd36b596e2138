"""Describe the API in /openapi.json: FastAPI's routes, with the parts it can't know.

Those are the failures, the key and the streams.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from engine.server.answering.answer_schemas import ChatChunk, CompletionChunk, Error
from engine.server.http.auth import is_open
from engine.server.http.shapes import MESSAGES
from engine.server.messages.message_schemas import AnthropicError, MessageEvent
from engine.server.responses.response_schemas import ResponseEvent

SCHEME = "key"
STREAMS: dict[str, type[BaseModel]] = {
    "/v1/completions": CompletionChunk,
    "/v1/chat/completions": ChatChunk,
    "/v1/messages": MessageEvent,
    "/v1/responses": ResponseEvent,
}
OTHER_THAN_JSON = {
    "/metrics": "text/plain",
    "/trace": "application/jsonl",
    "/trace/stream": "text/event-stream",
}
FAILURES = {
    "400": "Something in the request can't be served; `param` names it.",
    "401": "The API key is missing or wrong.",
    "404": "There is no such model, or no such thing.",
    "413": "The body is too large.",
    "503": "The server takes nothing now: Retry-After says when to ask again.",
}
_VALIDATION = ("HTTPValidationError", "ValidationError")  # FastAPI's own, never sent


def install(app: FastAPI, needs_key: bool) -> None:
    """Make `app` describe itself correctly. `needs_key`: routes that aren't open need a key."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, needs_key)
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]


def _described(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _VALIDATION:
        schemas.pop(name, None)
    models: list[type[BaseModel]] = [Error, AnthropicError, *STREAMS.values()]
    for model in models:
        _add(schemas, model)
    components["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _describe(operation, path, method, needs_key and not is_open(path))
    return document


def _add(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def _describe(operation: dict[str, Any], path: str, method: str, guarded: bool) -> None:
    responses = operation["responses"]
    statuses = []
    if responses.pop("422", None):  # the route reads something, which may be wrong
        statuses += ["400", "404"]
    if guarded:
        statuses.append("401")
        operation["security"] = [{SCHEME: []}]
    if method == "post":
        statuses += ["413", "503"]
    content = responses["200"].setdefault("content", {})
    if path in STREAMS:
        content["text/event-stream"] = {"schema": _reference(STREAMS[path])}
    if path in OTHER_THAN_JSON:
        responses["200"]["content"] = {OTHER_THAN_JSON[path]: {"schema": {"type": "string"}}}
    failure = {"application/json": {"schema": _reference(_failure(path))}}
    for status in sorted(statuses):
        responses[status] = {"description": FAILURES[status], "content": failure}


def _failure(path: str) -> type[BaseModel]:
    return AnthropicError if path.startswith(MESSAGES) else Error


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
