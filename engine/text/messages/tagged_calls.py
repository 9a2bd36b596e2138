"""Read calls whose parameters stand between tags, while they are written.

    <function=weather>
    <parameter=city>
    Oslo
    </parameter>
    </function>

Values are raw text. The tool's schema says which of them are strings; others are read as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.text.messages.call_body import Arguments, Began, CallEvent
from engine.text.messages.marks import overlap

_PYTHONS = {"True": "true", "False": "false", "None": "null"}
_TYPES: dict[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array",
    type(None): "null",
}  # fmt: skip


class Tags(NamedTuple):
    """Describe the tags. A name ends at its tag's end, or at a quote before that."""

    function: str  # "": the name stands at the beginning
    name_end: str
    parameter: str
    key_end: str
    value: str  # before a value; "": nothing
    value_end: str
    function_end: str  # "": the call's own mark is its end


class TaggedCalls:
    """Read calls between tags. `schemas`: of each tool's parameters, by its name."""

    def __init__(self, tags: Tags, schemas: Mapping[str, Any]):
        self.broken = False
        self._tags = tags
        self._schemas = schemas
        self._text = ""  # not read yet
        self._seen = ""  # read, and of no call that was told of
        self._state = "name" if not tags.function else "outside"
        self._name = ""
        self._num_values = 0
        self._key = ""
        self._types: frozenset[str] = frozenset()
        self._written = ""  # of a value that is read whole, or what a string may end with
        self._streams = False  # this value is a string, told as it comes
        self._begun = False

    @property
    def in_string(self) -> bool:
        """Return whether a mark would be text of a value.

        A value without its end is ended by the function's end tag, so only where there is one.
        """
        return self._state == "value" and bool(self._tags.function_end)

    @property
    def unread(self) -> str:
        return self._seen + self._text

    def feed(self, text: str) -> Iterator[CallEvent]:
        self._text += text
        while True:
            state, before = self._state, len(self._text)
            yield from self._step()
            if self._state == state and len(self._text) == before:
                return

    def end(self, cut: bool) -> Iterator[CallEvent]:
        if self._state == "name" and not self._tags.function and not cut:
            # nothing but a name: the function takes no parameters
            taken, self._text = self._text, ""
            yield from self._begin(taken, taken)
        if self._state == "value":
            text, self._text = self._text, ""
            if cut:  # it may be the beginning of a tag
                text = text[: len(text) - max(overlap(text, tag) for tag in self._value_ends())]
            yield from self._value(text)
            if not cut:
                yield from self._end_value()
        if self._state in ("inside", "key", "gap", "value"):
            self.broken |= self._state != "inside" or bool(self._tags.function_end)
            if not cut:
                yield from self._end_function()
        elif self._state == "name" or self.unread.strip():
            self.broken = True

    # ------------------------------------------------------------------------------ details

    def _step(self) -> Iterator[CallEvent]:
        tags = self._tags
        if self._state == "outside":
            self._skip(((tags.function, "name"),))
        elif self._state == "name":
            yield from self._read_name()
        elif self._state == "inside":
            ended = ((tags.function_end, "ended"),) if tags.function_end else ()
            self._skip(((tags.parameter, "key"), *ended))
            if self._state == "ended":
                yield from self._end_function()
        elif self._state == "key":
            found = self._until(tags.key_end)
            if found is not None:
                self._begin_key(found)
        elif self._state == "gap":
            self._skip(((tags.value, "value"),))
        elif self._state == "value":
            yield from self._in_value()

    def _skip(self, ways: tuple[tuple[str, str], ...]) -> None:
        """Skip what stands before the first of some tags; keep what may be the beginning of one."""
        found = [(self._text.find(tag), tag, state) for tag, state in ways if tag in self._text]
        if found:
            at, tag, self._state = min(found)
            self._seen += self._text[: at + len(tag)] if not self._begun else ""
            self._text = self._text[at + len(tag) :]
            return
        keep = max(map(len, (tag for tag, _ in ways)), default=1) - 1
        skipped = self._text[: max(0, len(self._text) - keep)]
        if not self._begun:
            self._seen += skipped
        self._text = self._text[len(skipped) :]

    def _until(self, tag: str) -> str | None:
        at = self._text.find(tag)
        if at < 0:
            return None
        found, self._text = self._text[:at], self._text[at + len(tag) :]
        return found

    def _read_name(self) -> Iterator[CallEvent]:
        tags = self._tags
        text = self._text if tags.function else self._text.lstrip()
        ends = [at for end in (tags.name_end, tags.parameter) if (at := text.find(end)) >= 0]
        if not ends:
            return
        name, rest = text[: min(ends)], text[min(ends) :]
        before, self._text = self._text, rest.removeprefix(tags.name_end)
        yield from self._begin(name, before[: len(before) - len(self._text)])

    def _begin(self, name: str, taken: str) -> Iterator[CallEvent]:
        """Begin a call. `taken`: the text that has its name; without a name it stays unread."""
        name = name.partition('"')[0].strip()
        if not name:
            self.broken, self._state = True, "unnamed"
            self._seen += taken
            return
        self._state, self._name, self._num_values = "inside", name, 0
        self._begun, self._seen = True, ""
        yield Began(name)

    def _begin_key(self, found: str) -> None:
        key, quote, attributes = found.partition('"')
        self._key = key.strip()
        self._types = types_of(self._schema(self._key))
        if quote and 'string="' in attributes:
            true = 'string="true"' in attributes
            self._types = frozenset({"string"} if true else {"object", "array", "number"})
        self._streams = self._types == {"string"}
        self._written, self._fresh = "", True
        self._state = "gap" if self._tags.value else "value"

    def _schema(self, key: str) -> Any:
        schema = self._schemas.get(self._name)
        named = schema.get("properties") if isinstance(schema, dict) else None
        return named.get(key) if isinstance(named, dict) else None

    def _in_value(self) -> Iterator[CallEvent]:
        """Read on, to the end tag, or to what must follow one that the model left out."""
        tags, ends = self._tags, self._value_ends()
        found = [(at, tag) for tag in ends if (at := self._text.find(tag)) >= 0]
        if found:
            at, _ = min(found)
            value, rest = self._text[:at], self._text[at:]
            self._text = rest.removeprefix(tags.value_end)
            yield from self._value(value)
            yield from self._end_value()
            return
        keep = max(map(len, ends))  # and one newline
        certain = self._text[: max(0, len(self._text) - keep)]
        self._text = self._text[len(certain) :]
        yield from self._value(certain)

    def _value_ends(self) -> list[str]:
        tags = self._tags
        ends = [tags.value_end, f"\n{tags.parameter}"]
        return [*ends, f"\n{tags.function_end}"] if tags.function_end else ends

    def _value(self, text: str) -> Iterator[CallEvent]:
        if self._fresh and text:
            text = text.removeprefix("\n")
            opened = f"{self._separator()}{json.dumps(self._key, ensure_ascii=False)}: "
            self._fresh = False
            if self._streams:
                yield Arguments(f'{opened}"')
        self._written += text
        if self._streams and self._written:
            keep = 1 if self._written.endswith("\n") else 0
            told = self._written[: len(self._written) - keep]
            self._written = self._written[len(told) :]
            if told:
                yield Arguments(json.dumps(told, ensure_ascii=False)[1:-1])

    def _end_value(self) -> Iterator[CallEvent]:
        opened = f"{self._separator()}{json.dumps(self._key, ensure_ascii=False)}: "
        if self._streams:
            yield Arguments('"' if not self._fresh else f'{opened}""')
        else:
            yield Arguments(opened + typed(self._written.removesuffix("\n"), self._types))
        self._num_values += 1
        self._state = "inside"

    def _separator(self) -> str:
        return ", " if self._num_values else "{"

    def _end_function(self) -> Iterator[CallEvent]:
        yield Arguments("}" if self._num_values else "{}")
        self._state = "outside" if self._tags.function else "ended"
        self._begun = False


def types_of(schema: Any) -> frozenset[str]:
    """Return the JSON types that a schema names. Without any, a value is a string."""
    if not isinstance(schema, dict):
        return frozenset({"string"})
    found: set[str] = set()
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    found.update(each for each in kinds if isinstance(each, str))
    for name in ("anyOf", "oneOf", "allOf"):
        parts = schema.get(name)
        for part in parts if isinstance(parts, list) else ():
            found |= types_of(part) if isinstance(part, dict) and len(found) < 8 else set()
    values = schema.get("enum")
    if isinstance(values, list) and not kind:
        found.update(_TYPES.get(type(value), "null") for value in values)
    if not found and ("$ref" in schema or "properties" in schema or "items" in schema):
        found = {"object", "array"}
    return frozenset(found) or frozenset({"string"})


def typed(text: str, types: frozenset[str]) -> str:
    """Write a value as JSON. It is a string if it can't be what its schema says."""
    stripped = text.strip()
    try:
        value = json.loads(_PYTHONS.get(stripped, stripped))
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    kind = _TYPES[type(value)]
    fits = kind in types or (kind == "integer" and "number" in types)
    return written if fits or "string" not in types else json.dumps(text, ensure_ascii=False)
