"""Leave out of JSON Schemas what names a format of strings that no grammar can hold.

`format` is an annotation (JSON Schema 2020-12, Validation, section 7): a reader that doesn't know
one ignores it. Ordinary types have such formats: pydantic writes "path", "password" and "uuid4".
"""

from __future__ import annotations

from typing import Any

HELD = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
     "unknown")
)  # fmt: skip
"""What llguidance knows."""
_ONE_SCHEMA = (
    "items", "additionalProperties", "not", "contains", "propertyNames", "if", "then", "else",
    "additionalItems", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SCHEMAS = ("items", "prefixItems", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def without_unknown_formats(schema: Any, found: set[str]) -> Any:
    """Return a schema without the formats that aren't `HELD`; add their names to `found`.

    Data in a schema (`const`, `enum`, …) stays as it is.
    """
    if not isinstance(schema, dict):
        return schema
    made = {name: _part(name, value, found) for name, value in schema.items()}
    name = made.get("format")
    if isinstance(name, str) and name not in HELD:
        del made["format"]
        kinds = made.get("type", "string")
        if "string" in (kinds if isinstance(kinds, list) else (kinds,)):
            found.add(name)  # of numbers every format holds nothing
    return made


def _part(name: str, value: Any, found: set[str]) -> Any:
    if isinstance(value, list) and name in _SCHEMAS:
        return [without_unknown_formats(each, found) for each in value]
    if isinstance(value, dict) and name in _NAMED:
        return {key: without_unknown_formats(each, found) for key, each in value.items()}
    return without_unknown_formats(value, found) if name in _ONE_SCHEMA else value
