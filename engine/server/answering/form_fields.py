"""Read which form an answer must have, by the names of OpenAI's clients and of vLLM's, new and old.

Every way of saying it becomes one `StructuredOutputsParams`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from engine.server.http.errors import bad_request
from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams

_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice",
           "guided_grammar": "grammar", "structural_tag": "structural_tag"}  # fmt: skip
_PATTERN = "guided_whitespace_pattern"


class FormFields(BaseModel):
    """Declare the fields that ask for a form."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    structural_tag: dict[str, Any] | str | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None

    @functools.cached_property
    def form(self) -> tuple[StructuredOutputsParams | None, str]:
        """Return the form that the body asks for, and the field in which it does; None, "" without.

        Raises `ApiError` 400 for a form that can't be read, and for more than one.
        """
        return _form_of(self)


def _form_of(body: FormFields) -> tuple[StructuredOutputsParams | None, str]:
    asked = list(_asked(body))
    if len(asked) > 1:
        names = " and ".join(name for name, _ in asked)
        raise bad_request(f"{names} each ask for a form of the answer; send one.", asked[1][0])
    pattern = body.guided_whitespace_pattern
    if not asked:
        if pattern is not None:
            raise bad_request(f"{_PATTERN} needs guided_json.", _PATTERN)
        return None, ""
    name, fields = asked[0]
    if pattern is not None:
        fields = {**fields, "whitespace_pattern": pattern}
    unknown = sorted(set(fields) - set(StructuredOutputsParams.__struct_fields__))
    if unknown:
        raise bad_request(f"{name}.{unknown[0]} is not supported by this server.", name)
    try:
        return StructuredOutputsParams(**fields), name
    except StructuredOutputsError as error:
        where = f"{name}.{error.field}" if error.field and name == "structured_outputs" else name
        raise bad_request(f"{name}: {error}", where) from None


def _asked(body: FormFields) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each field that asks for a form, and the fields of `StructuredOutputsParams`."""
    if body.response_format is not None:
        fields = _response_format(body.response_format)
        if fields is not None:
            yield "response_format", fields
    if body.structured_outputs is not None:
        yield "structured_outputs", _without_null(body.structured_outputs)
    for name, meaning in _GUIDED.items():
        value = getattr(body, name)
        if value is not None:
            yield name, {meaning: value}


def _response_format(given: dict[str, Any]) -> dict[str, Any] | None:
    """Read `response_format`; None for plain text."""
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        described = given.get("json_schema")
        if not isinstance(described, dict):
            raise bad_request(
                "response_format.json_schema must be an object with the schema in it.",
                "response_format.json_schema",
            )
        schema = described.get("schema")
        return {"json_object": True} if schema is None else {"json": schema}
    if kind == "structural_tag":
        return {"structural_tag": {name: part for name, part in given.items() if name != "type"}}
    raise bad_request(
        f"response_format.type is {kind!r:.40}; it must be text, json_object, json_schema or"
        " structural_tag.",
        "response_format.type",
    )


def _without_null(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
