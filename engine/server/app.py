"""Make the FastAPI application: routes, failures, key. The routes share a `Service`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from engine import __version__
from engine.config import EngineConfig
from engine.server import openapi
from engine.server.http import failures
from engine.server.http.auth import ApiKey
from engine.server.http.bodies import BodyLimit
from engine.server.http.exchange import Exchange
from engine.server.routes import (
    absent,
    anthropic,
    chat,
    classroom,
    compare,
    completions,
    models,
    page,
    record,
    responses,
    status,
    tokenize,
)
from engine.server.service import Service

MAX_BODY_BYTES = 16 * 2**20
"""Some four million tokens as text: far more than any context."""


def create_app(service: Service, max_body_bytes: int = MAX_BODY_BYTES) -> ASGIApp:
    """Make an application that starts and stops with `service`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    # The pages /docs and /redoc load their scripts from foreign servers, so they are off.
    app = FastAPI(
        title="Glasshouse",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    serving = (completions, chat, responses, anthropic, tokenize, models)
    for part in (*serving, status, record, compare, page, classroom, absent):
        app.include_router(part.router(service))
    failures.install(app)
    openapi.install(app, needs_key=bool(service.config.api_key))
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    if service.config.api_key:
        app.add_middleware(ApiKey, keys=service.config.api_key)  # outermost: before any part
    whole = _for_pages_of_others(app, service.config)
    return Exchange(whole, service.metrics.observe_answer, service.config.root_path)


def _for_pages_of_others(app: ASGIApp, config: EngineConfig) -> ASGIApp:
    """Allow pages of other origins, if configured (CORS): a browser asks first, without the key."""
    if not config.allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=config.allowed_origins,
        allow_methods=config.allowed_methods or ["*"],
        allow_headers=config.allowed_headers or ["*"],
        allow_credentials=config.allow_credentials,
        expose_headers=["X-Request-Id", "Retry-After"],
    )
