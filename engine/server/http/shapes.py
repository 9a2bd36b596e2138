"""Write failures in the shape of the API that the client speaks: OpenAI's, or Anthropic's.

OpenAI's: {"error": {"message", "type", "param", "code"}}
Anthropic's: {"type": "error", "error": {"type", "message"}, "request_id"}
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from engine.server.http.errors import ApiError

MESSAGES = "/v1/messages"
MODELS = "/v1/models"  # in both APIs: the header tells which client asks
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def speaks_anthropic(scope: Scope) -> bool:
    """Return whether a request is one of Anthropic's API, by its path or its header."""
    path = get_route_path(scope)
    if path.startswith(MODELS):
        return "anthropic-version" in Headers(scope=scope)
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def failure_response(error: ApiError, scope: Scope) -> Response:
    """Write a failure as the answer to the request of `scope`."""
    if speaks_anthropic(scope):
        body = anthropic_failure(error, Headers(scope=scope).get("x-request-id", ""))
    else:
        body = error.body()
    return Response(
        msgspec.json.encode(body),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )


def anthropic_failure(error: ApiError, request_id: str) -> dict[str, Any]:
    """Write a failure as Anthropic's API does."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    told: dict[str, Any] = {
        "type": ANTHROPIC_TYPES.get(error.status, other),
        "message": error.message,
    }
    if error.details is not None:
        told["details"] = error.details
    return {"type": "error", "error": told, "request_id": request_id}
