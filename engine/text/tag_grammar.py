"""Write the grammar of free text in which marks open parts that a schema holds (structural tags).

A mark that is one special token is named by its id, because a text can't spell it; any other mark
is text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine.structured_outputs import StructuredOutputsError

KIND = "structural_tag"


class Tag(NamedTuple):
    """Describe a part: what begins it, the JSON Schema of what follows, and what ends it."""

    begin: str
    schema: Any
    end: str


def tag_grammar(value: Any, special: Mapping[str, int], with_options: Callable[[Any], Any]) -> str:
    """Write a structural tag in Lark's dialect.

    `special`: the ids of the special tokens, by their text. Takes {"structures", "triggers"}, and
    {"format": {"type": "triggered_tags", "tags", "triggers"}}. Raises `StructuredOutputsError`.
    """
    tags, triggers = _read(value)
    rules = [
        _rule(place, tag, _trigger(tag, triggers), special, with_options(tag.schema))
        for place, tag in enumerate(tags)
    ]
    names = " | ".join(f"tag_{place}" for place in range(len(tags)))
    head = [f"start: ({names})* text", "text: TEXT", r"TEXT: /(.|\n)*/"]
    return "\n".join([*head, *rules])


def marks(text: str, special: Mapping[str, int]) -> str:
    """Write a text in Lark's dialect, special tokens in it by their ids."""
    written, rest = [], text
    while rest:
        found = min(
            ((rest.find(name), -len(name), name) for name in special if name and name in rest),
            default=None,
        )
        at = len(rest) if found is None else found[0]
        if at:
            written.append(_quoted(rest[:at]))
        if found is not None:
            written.append(f"<[{special[found[2]]}]>")
            at += len(found[2])
        rest = rest[at:]
    return " ".join(written)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _rule(place: int, tag: Tag, trigger: str, special: Mapping[str, int], schema: Any) -> str:
    held = f"%json {json.dumps(schema)}"
    body = f"{marks(tag.begin[len(trigger) :], special)} {held} {marks(tag.end, special)}".strip()
    if trigger in special:
        return f"tag_{place}: TEXT <[{special[trigger]}]> {body}"
    opening = f"tag_{place}_opens[lazy]: TEXT {_quoted(trigger)}"
    return f"{opening}\ntag_{place}: tag_{place}_opens {body}"


def _trigger(tag: Tag, triggers: list[str]) -> str:
    for trigger in sorted(triggers, key=len, reverse=True):
        if trigger and tag.begin.startswith(trigger):
            return trigger
    raise StructuredOutputsError(
        KIND, f"{KIND}: none of its triggers begins the mark {tag.begin!r:.80}."
    )


def _read(value: Any) -> tuple[list[Tag], list[str]]:
    """Read both ways of writing such a tag."""
    if not isinstance(value, dict):
        raise _wrong("it must be an object")
    given = value.get("format", value)
    if not isinstance(given, dict) or given.get("type", KIND) not in (KIND, "triggered_tags"):
        kind = given.get("type") if isinstance(given, dict) else given
        raise _wrong(f"format {kind!r:.40} is not served; give structures, or triggered_tags")
    parts, triggers = given.get("structures", given.get("tags")), given.get("triggers")
    if not isinstance(parts, list) or not parts or not isinstance(triggers, list) or not triggers:
        raise _wrong("it needs a list of structures (or tags) and a list of triggers")
    if not all(isinstance(trigger, str) for trigger in triggers):
        raise _wrong("triggers must be strings")
    return [_tag(part, place) for place, part in enumerate(parts)], triggers


def _tag(part: Any, place: int) -> Tag:
    if not isinstance(part, dict):
        raise _wrong(f"entry {place} must be an object")
    schema = part.get("schema")
    content = part.get("content")
    if isinstance(content, dict):
        if content.get("type") != "json_schema":
            raise _wrong(
                f"entry {place} has content of type {content.get('type')!r:.40}; only"
                " json_schema is served"
            )
        schema = content.get("json_schema")
    begin, end = part.get("begin"), part.get("end", "")
    if not isinstance(begin, str) or not isinstance(end, str) or not begin:
        raise _wrong(f"entry {place} needs begin and end, both strings")
    if not isinstance(schema, dict | bool):
        raise _wrong(f"entry {place} needs a schema, a JSON object")
    return Tag(begin, schema, end)


def _wrong(reason: str) -> StructuredOutputsError:
    return StructuredOutputsError(KIND, f"{KIND}: {reason}.")
