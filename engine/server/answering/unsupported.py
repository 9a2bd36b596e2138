"""Handle the fields of a body that its class doesn't declare, by the table of fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.server.answering.fields import BODIES, FIELDS, REFUSED
from engine.server.http.errors import bad_request

_KNOWN = {body: {f.name: f for f in FIELDS if f.verdict(body)} for body in BODIES}


def unknown_fields(body: str, extra: Mapping[str, Any]) -> list[str]:
    """Check `extra`, the fields that the class of `body` doesn't declare; return the unknown ones.

    Raises `ApiError` 400 for a field that is refused: without it the answer wouldn't be what was
    asked for, so it is never ignored.
    """
    unknown = []
    for name, value in extra.items():
        field = _KNOWN[body].get(name)
        if field is None:
            unknown.append(name)
        elif field.verdict(body) == REFUSED and value not in field.passes:
            raise bad_request(f"{name} is not supported by this server. Leave it out.", name)
    return sorted(unknown)
