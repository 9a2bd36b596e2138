"""Report every failure of a request in the one shape that clients of this API know.

{"error": {"message": …, "type": …, "param": …, "code": <the HTTP status>}}
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from loguru import logger
from starlette.exceptions import HTTPException

from engine.sampling_params import ParameterError
from engine.text.characters import mended
from engine.text.errors import TextError

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "PayloadTooLargeError",
    415: "UnsupportedMediaTypeError",
    431: "HeadersTooLargeError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


MOST_OF_A_MESSAGE = 1_000  # characters: some messages name a value that the client chose
MOST_OF_A_PATH = 200


def _clipped(text: str, most: int) -> str:
    return mended(text if len(text) <= most else f"{text[:most]}…")


class ApiError(Exception):
    """Fail a request. `status` and `message` are for the client, `param` is the field's dotted
    path."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = _clipped(message, MOST_OF_A_MESSAGE)
        self.param = None if param is None else _clipped(param, MOST_OF_A_PATH)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "ApiError"),
                "param": self.param,
                "code": self.status,
            }
        }

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()),
            status_code=self.status,
            headers=self.headers,
            media_type="application/json",
        )


class ClientLeft(Exception):
    """Report that the client closed the connection before its answer was complete. No reply is
    sent."""


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param)


def unavailable(message: str, retry_after_s: int) -> ApiError:
    """Make a 503: the request is fine, but the server can't take it now."""
    return ApiError(503, message, headers={"Retry-After": str(retry_after_s)})


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Make a 400 from the first of pydantic's complaints, with the field's dotted path."""
    first = errors[0]
    path = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "it can't be parsed")
        return bad_request(f"The body is not valid JSON: {reason} (near character {path}).")
    message = str(first["msg"]).removeprefix("Value error, ")
    if not path:
        if first["type"] != "value_error":
            message = (
                "it must be a JSON object, sent with the header Content-Type: application/json"
            )
        return bad_request(f"The body can't be used: {message}.")
    if first["type"] == "missing":
        message = "this field is required"
    return bad_request(f"{path}: {message}.".replace("..", "."), path)


def install(app: FastAPI) -> None:
    """Register handlers, so that every failure of a route has the one shape."""

    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    async def parameter_error(request: Request, error: ParameterError | TextError) -> Response:
        return bad_request(str(error), error.param).response()

    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()).response()

    async def http_error(request: Request, error: HTTPException) -> Response:
        message = {
            404: f"There is no route {request.url.path}.",
            405: f"{request.method} is not allowed for {request.url.path}.",
        }.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response()

    async def client_left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)  # the status that proxies log for it

    async def unexpected(request: Request, error: Exception) -> Response:
        # The text of the exception may contain people's text: log it, don't send it.
        logger.error("{} failed:\n{}", request.url.path, "".join(traceback.format_exception(error)))
        return ApiError(500, "The server failed at this request; its log says why.").response()

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
