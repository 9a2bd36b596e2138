"""Refuse parts of a message of a kind that this server doesn't take, alike in each API."""

from __future__ import annotations

from typing import Any

from engine.server.http.errors import ApiError, bad_request


def not_taken(kind: Any, path: str) -> ApiError:
    """Make the refusal of the part at `path`. kind: what the client named, of any type."""
    return bad_request(
        f"{path} is of type {shown(kind)}, which this server doesn't take: it makes text from "
        "text.",
        path,
    )


def shown(value: Any) -> str:
    """Return a value as an error shows it."""
    return repr(value)[:40]
