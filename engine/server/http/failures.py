"""Answer each failure of a route in the shape of its API, whatever raised it."""

from __future__ import annotations

import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from loguru import logger
from starlette.exceptions import HTTPException

from engine.sampling_params import ParameterError
from engine.server.http.errors import ApiError, ClientLeft, bad_request, from_validation
from engine.server.http.shapes import failure_response
from engine.text.errors import TextError


def install(app: FastAPI) -> None:
    """Register handlers, so that every failure of a route has the one shape."""

    async def api_error(request: Request, error: ApiError) -> Response:
        return failure_response(error, request.scope)

    async def parameter_error(request: Request, error: ParameterError | TextError) -> Response:
        return failure_response(bad_request(str(error), error.param), request.scope)

    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return failure_response(from_validation(error.errors()), request.scope)

    async def http_error(request: Request, error: HTTPException) -> Response:
        message = {
            404: f"There is no route {request.url.path}.",
            405: f"{request.method} is not allowed for {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        failure = ApiError(error.status_code, message, headers=error.headers)
        return failure_response(failure, request.scope)

    async def client_left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)  # the status that proxies log for it

    async def unexpected(request: Request, error: Exception) -> Response:
        # The text of the exception may contain people's text: log it, don't send it.
        logger.error("{} failed:\n{}", request.url.path, "".join(traceback.format_exception(error)))
        failure = ApiError(500, "The server failed at this request; its log says why.")
        return failure_response(failure, request.scope)

    handlers: dict[type[Exception], Any] = {
        ApiError: api_error,
        ParameterError: parameter_error,
        TextError: parameter_error,
        RequestValidationError: validation_error,
        HTTPException: http_error,
        ClientLeft: client_left,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
