"""Declare the failures of requests: an HTTP status, a message for the client, and the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.text.characters import mended

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
    path, `details` what Anthropic's clients read beside the message."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: dict[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = _clipped(message, MOST_OF_A_MESSAGE)
        self.param = None if param is None else _clipped(param, MOST_OF_A_PATH)
        self.headers = dict(headers or {})
        self.details = details

    def body(self) -> dict[str, Any]:
        """Write the failure as OpenAI's API does."""
        return {
            "error": {
                "message": self.message,
                "type": TYPES.get(self.status, "ApiError"),
                "param": self.param,
                "code": self.status,
            }
        }


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
