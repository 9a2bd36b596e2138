"""Small JSON Schemas, one for each kind of keyword that a text can be held to."""

from __future__ import annotations

from typing import Any

WORD = {"type": "string", "maxLength": 6}
CLOSED = {"additionalProperties": False}


def obj(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """An object that has only these properties, by default all of them."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        **CLOSED,
    }


TREE = {
    "$defs": {
        "tree": obj(
            ["name"],
            name={"enum": ["a", "b"]},
            below={"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
        )
    },
    "$ref": "#/$defs/tree",
}

SCHEMAS: dict[str, Any] = {
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "const": {"const": {"a": [1, "x"]}},
    "enum of kinds": {"enum": ["red", 2, None, True, [1], "ü \" \\"]},
    "integer in a range": {"type": "integer", "minimum": -3, "maximum": 250},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "number in a range": {"type": "number", "minimum": 0, "maximum": 1},
    "a multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "a short string": {"type": "string", "minLength": 2, "maxLength": 5},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "an unanchored pattern": {"type": "string", "pattern": "ab", "maxLength": 5},
    "a date": {"type": "string", "format": "date"},
    "a time": {"type": "string", "format": "date-time"},
    "a uuid": {"type": "string", "format": "uuid"},
    "an address": {"type": "string", "format": "ipv4"},
    "several types": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    "an object": obj(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 150}),
    "optional properties": obj(["b"], a=WORD, b={"type": "boolean"}, c={"type": "null"}),
    "no properties": obj(),
    "other properties of one kind": {
        "type": "object",
        "properties": {"a": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 2,
    },
    "properties by pattern": {
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "a list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "a tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}],
        "items": False,
        "minItems": 2,
    },
    "a tuple with more": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}],
        "items": {"type": "null"},
        "minItems": 2,
        "maxItems": 3,
    },
    "lists in lists": {
        "type": "array",
        "items": {"type": "array", "items": {"enum": [0, 1]}, "maxItems": 2},
        "minItems": 1,
        "maxItems": 2,
    },
    "either": {"anyOf": [{"type": "boolean"}, obj(a={"enum": [1, 2]})]},
    "one of two kinds": {"oneOf": [obj(kind={"const": "cat"}, lives={"enum": [7, 9]}),
                                   obj(kind={"const": "dog"}, good={"const": True})]},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}, "b": {}}},
                         {"properties": {"a": {}, "b": {"type": "null"}}, "required": ["a", "b"],
                          "additionalProperties": False}]},
    "a reference": {"$defs": {"flag": {"type": "boolean"}}, **obj(a={"$ref": "#/$defs/flag"})},
    "recursion": TREE,
    "names that need care": obj(**{"a b": {"type": "null"}, 'quo"te': {"type": "null"},
                                   "ü/~": {"type": "null"}, "a.b": {"type": "null"}}),
    "what describes it": {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "default": False,
        "description": "d", "examples": [True], "deprecated": True, "type": "boolean",
    },
    # as clients make them from their classes
    "of pydantic": {
        "title": "Order",
        "type": "object",
        "properties": {
            "id": {"title": "Id", "type": "integer", "minimum": 1, "maximum": 99},
            "note": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}],
                     "default": None, "title": "Note"},
            "state": {"$ref": "#/$defs/State"},
        },
        "required": ["id", "state"],
        "$defs": {"State": {"enum": ["open", "paid"], "title": "State", "type": "string"}},
        **CLOSED,
    },
    "strict": obj(answer={"type": ["string", "null"], "maxLength": 3},
                  steps={"type": "array", "items": obj(n={"enum": [1, 2]}), "maxItems": 2}),
}  # fmt: skip
"""A text that follows one of these ends by itself after some dozen tokens."""

UNSERVED: dict[str, tuple[Any, str, str]] = {
    "not": ({"properties": {"a": {"not": {"type": "null"}}}}, "/properties/a", "not"),
    "unique": ({"items": {"uniqueItems": True}}, "/items", "uniqueItems"),
    "a condition": ({"if": {}, "then": {}}, "", "if"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "", "oneOf"),
    "a bad pattern": ({"$defs": {"x": {"type": "string", "pattern": "(a"}},
                       "properties": {"p": {"$ref": "#/$defs/x"}}}, "", "unclosed group"),
    "far away": ({"properties": {"p": {"$ref": "https://example.com/s"}}}, "/properties/p",
                 "example.com"),
    "nothing fits": (False, "", "false"),
    "bounds that cross": (obj(a={"type": "integer", "minimum": 3, "maximum": 1}), "", "'a'"),
    "an unknown type": ({"type": "colour"}, "", "colour"),
}  # fmt: skip
"""Schema, the place that the refusal names, a word of its reason."""
