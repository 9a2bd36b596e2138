"""Turn the form that a text must have into a grammar of llguidance, and check it.

The check compiles the grammar without a vocabulary, so that it takes milliseconds. llguidance is
imported at the first grammar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.structured_outputs import (
    GRAMMAR_LIMITS,
    LARGEST,
    MOST_ENTRIES,
    MOST_LEVELS,
    StructuredOutputsError,
    StructuredOutputsParams,
)
from engine.text.schema_formats import without_unknown_formats
from engine.text.tag_grammar import tag_grammar

WHITESPACE = r"( |\n {0,20})?"
"""Between JSON's parts: compact, with spaces, or indented. Without a bound a model might never end.
"""
MOST_OF_A_REASON = 500  # characters
MOST_PLACES = 2_000  # subschemas that are tried for the place of an error
_ONE_SCHEMA = ("items", "additionalProperties", "not", "contains", "propertyNames", "if", "then")
_SCHEMAS = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SPECIAL_IN_REGEX = frozenset(r"\.+*?()|[]{}^$#&-~/")


class Checked(NamedTuple):
    """Hold a grammar that compiles, as llguidance reads it, and what it ignores of the form."""

    grammar: str
    warnings: list[str]


def checked_grammar(form: StructuredOutputsParams, special: Mapping[str, int]) -> Checked:
    """Make the grammar of a form. `special`: the ids of the special tokens, by their text.

    Raises `StructuredOutputsError`, which says where and why it can't be held.
    """
    from llguidance import LLMatcher

    unheld: set[str] = set()
    grammar = grammar_of(form, special, unheld)
    failed, said = LLMatcher.validate_grammar_with_warnings(grammar, limits=_limits())
    if failed:
        where = _place(form) if form.form == "json" else ""
        reason = said[0].strip()[:MOST_OF_A_REASON]
        at = f" at {where}" if where else ""
        raise StructuredOutputsError(form.form, f"{form.form} can't be held{at}: {reason}")
    warnings = [f"the format {name!r:.40} holds a string to nothing" for name in sorted(unheld)]
    return Checked(grammar, warnings + [text for text in said if "no tokenizer" not in text])


def _limits() -> Any:
    from llguidance import LLParserLimits

    return LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)


def grammar_of(form: StructuredOutputsParams, special: Mapping[str, int], unheld: set[str]) -> str:
    """Write a form as llguidance's grammar. unheld: gets the formats that it can't hold.

    Raises `StructuredOutputsError`.
    """
    kind, value = form.form, getattr(form, form.form)
    if kind == "json":
        return _schema_grammar(schema_of(form), form, unheld)
    if kind == "json_object":
        return _schema_grammar({"type": "object"}, form, unheld)
    if kind == "structural_tag":
        tag = _parsed(value, kind)
        _check_schema(tag, kind)
        return _lark(tag_grammar(tag, special, lambda part: _with_options(part, form, unheld)))
    _check_size(kind, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    if kind == "choice":
        escaped = ("".join(map(_escaped, choice)) for choice in dict.fromkeys(value))
        return _lark(f"start: /({'|'.join(escaped)})/")
    if kind == "regex":
        from llguidance import LLMatcher

        return LLMatcher.grammar_from_regex(value)
    return _lark(_as_lark(value))


def schema_of(form: StructuredOutputsParams) -> Any:
    """Return the form's JSON Schema. Raises `StructuredOutputsError` if it isn't one."""
    schema = _parsed(form.json, "json")
    _check_schema(schema, "json")
    return schema


def _schema_grammar(schema: Any, form: StructuredOutputsParams, unheld: set[str]) -> str:
    return json.dumps({"grammars": [{"json_schema": _with_options(schema, form, unheld)}]})


def _with_options(schema: Any, form: StructuredOutputsParams, unheld: set[str]) -> Any:
    """Add the options of JSON's grammar to a schema, and leave out formats that it can't hold."""
    schema = without_unknown_formats(schema, unheld)
    if form.disable_additional_properties:
        schema = _closed(schema)
    options: dict[str, Any] = {"whitespace_pattern": form.whitespace_pattern or WHITESPACE}
    if form.disable_any_whitespace:
        options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
    if schema is True:
        schema = {}
    return {**schema, "x-guidance": options} if isinstance(schema, dict) else schema


def _closed(schema: Any) -> Any:
    """Return a schema whose objects have only the properties that they name."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _closed(item) for name, item in schema.items()}
    names = schema.get("properties")
    if isinstance(names, dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def _parsed(value: Any, kind: str) -> Any:
    if not isinstance(value, str):
        return value
    _check_size(kind, value)
    try:
        return json.loads(value)
    except ValueError as error:
        raise StructuredOutputsError(kind, f"{kind} is not JSON: {error}.") from None
    except RecursionError:
        raise _too_deep(kind, kind) from None


def _check_size(kind: str, text: str) -> None:
    size = len(text.encode(errors="surrogatepass"))
    if size > LARGEST:
        raise StructuredOutputsError(
            kind, f"{kind} has {size:,} bytes; at most {LARGEST:,} are compiled. Shorten it."
        )


def _check_schema(schema: Any, kind: str) -> None:
    """Raise `StructuredOutputsError` for a schema that is too large, or not one."""
    if not isinstance(schema, dict | bool):
        raise StructuredOutputsError(
            kind, f"{kind} must be an object, a JSON Schema; it is {schema!r:.80}."
        )
    for path, value, level in _walk(schema, kind):
        if level > MOST_LEVELS:
            raise _too_deep(kind, path)
        if isinstance(value, dict) and len(value) > MOST_ENTRIES:
            raise StructuredOutputsError(
                kind, f"{path} has {len(value):,} entries; at most {MOST_ENTRIES:,} are compiled."
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise StructuredOutputsError(kind, f"{path} is {value}, which is not JSON.")
    _check_size(kind, json.dumps(schema, ensure_ascii=False))


def _too_deep(kind: str, path: str) -> StructuredOutputsError:
    shown = path if len(path) <= 60 else f"{path[:60]}…"
    return StructuredOutputsError(
        kind, f"{shown} is nested too deeply; at most {MOST_LEVELS} levels are compiled."
    )


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any, int]]:
    """Visit a value and all in it, with paths and levels, to one level beyond the limit."""
    pending = [(path, value, 0)]
    while pending:
        path, value, level = pending.pop()
        yield path, value, level
        if level > MOST_LEVELS:
            continue
        if isinstance(value, dict):
            pending += [(f"{path}/{key}", item, level + 1) for key, item in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}/{at}", item, level + 1) for at, item in enumerate(value)]


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def _as_lark(text: str) -> str:
    """Return a grammar in Lark's dialect, from GBNF if it is that."""
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(text)
    except Exception as error:  # what the translation raises isn't declared
        reason = str(error)[:MOST_OF_A_REASON]
        raise StructuredOutputsError("grammar", f"grammar can't be read: {reason}") from None


def _escaped(character: str) -> str:
    if character in "\n\r\t":
        return {"\n": r"\n", "\r": r"\r", "\t": r"\t"}[character]
    return f"\\{character}" if character in _SPECIAL_IN_REGEX else character


def _place(form: StructuredOutputsParams) -> str:
    """Return the path of the innermost subschema that can't be held by itself; "" if unknown."""
    from llguidance import LLMatcher

    schema = schema_of(form)
    shared = {}
    if isinstance(schema, dict):
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    tried = 0

    def fails(part: Any) -> bool:
        nonlocal tried
        tried += 1
        alone = {**shared, **part} if isinstance(part, dict) else part
        text = _schema_grammar(alone, form, set())
        return LLMatcher.validate_grammar_with_warnings(text, limits=_limits())[0]

    def used(part: Any) -> bool:  # what is shared by all may be what fails
        return fails(part) and not (shared and fails(True))

    path, found = "", schema
    while tried < MOST_PLACES:
        for step, part in _subschemas(found):
            if used(part):
                path, found = f"{path}/{step}", part
                break
        else:
            return path
    return path


def _subschemas(schema: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(schema, dict):
        return
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            yield from ((f"{name}/{key}", part) for key, part in schema[name].items())
    for name in _ONE_SCHEMA:
        if isinstance(schema.get(name), dict):
            yield name, schema[name]
    for name in _SCHEMAS:
        if isinstance(schema.get(name), list):
            yield from ((f"{name}/{at}", part) for at, part in enumerate(schema[name]))
