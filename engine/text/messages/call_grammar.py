"""Write the grammar of calls in Lark's dialect, so that a model must call a tool.

The model's own format is written, with its marks as the model's own tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.text.form_to_grammar import WHITESPACE
from engine.text.messages.formats import ANY_MODEL, CallFormat
from engine.text.messages.tagged_calls import types_of
from engine.text.tag_grammar import marks

_NUMBER = "\0"
"""Where a format writes which call of the conversation it is."""


class Written(NamedTuple):
    """Describe what stands around a call's arguments. NAME: the tool's name."""

    before: str
    after: str
    first: str = ""  # before all calls
    between: str = ""  # "": there is one call
    last: str = ""  # behind all calls


class WrittenInTags(NamedTuple):
    """Describe what stands around each value. NAME: the tool's name; KEY: the parameter's."""

    before: str
    key: str
    value_end: str
    after: str
    between: str = "\n"
    first: str = ""
    last: str = ""


_OBJECT = '{"name": "NAME", "arguments": '
WRITTEN: dict[str, Written | WrittenInTags] = {
    "hermes": Written(f"<tool_call>\n{_OBJECT}", "}\n</tool_call>", between="\n"),
    "llama3_json": Written('{"name": "NAME", "parameters": ', "}"),
    "minimax": Written(_OBJECT, "}", "<tool_calls>[", ", ", "]</tool_calls>"),
    "nemotron": Written(_OBJECT, "}", "<TOOLCALL>[", ", ", "]</TOOLCALL>"),
    "granite": Written(_OBJECT, "}", "<|tool_call|>[", ", ", "]"),
    "phi4_mini_json": Written(_OBJECT, "}", "functools[", ", ", "]"),
    "gigachat": Written(f"<|function_call|>{_OBJECT}", "}<|message_sep|>"),
    "cohere": Written(
        '{"tool_name": "NAME", "parameters": ', "}", "<|START_ACTION|>[", ", ", "]<|END_ACTION|>"
    ),
    "apertus": Written('{"NAME": ', "}", "<|tools_prefix|>[", ", ", "]<|tools_suffix|>"),
    "deepseek_v3": Written(
        "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁begin｜>", "\n", "<｜tool▁calls▁end｜>",
    ),
    "kimi_k2": Written(
        f"<|tool_call_begin|>functions.NAME:{_NUMBER}<|tool_call_argument_begin|>",
        "<|tool_call_end|>", "<|tool_calls_section_begin|>", "\n", "<|tool_calls_section_end|>",
    ),
    "functionary_v3": Written("<function=NAME>", "</function>", between="\n"),
    "qwen3_xml": WrittenInTags(
        "<tool_call>\n<function=NAME>\n", "<parameter=KEY>\n", "\n</parameter>\n",
        "</function>\n</tool_call>",
    ),
    "seed_oss": WrittenInTags(
        "<seed:tool_call>\n<function=NAME>\n", "<parameter=KEY>", "</parameter>\n",
        "</function>\n</seed:tool_call>",
    ),
    "glm45": WrittenInTags(
        "<tool_call>NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"
    ),
    "hunyuan": WrittenInTags(
        "<tool_call:opensource>NAME<tool_sep:opensource>\n",
        "<arg_key:opensource>KEY</arg_key:opensource>\n<arg_value:opensource>",
        "</arg_value:opensource>\n", "</tool_call:opensource>\n", "",
        "<tool_calls:opensource>\n", "</tool_calls:opensource>",
    ),
    "minimax_m2": WrittenInTags(
        '<invoke name="NAME">\n', '<parameter name="KEY">', "</parameter>\n", "</invoke>\n",
        "", "<minimax:tool_call>\n", "</minimax:tool_call>",
    ),
}  # fmt: skip
_MISTRAL_OLD = Written(_OBJECT, "}", "[TOOL_CALLS][", ", ", "]")
_MISTRAL_NEW = Written("[TOOL_CALLS]NAME[ARGS]", "", between="\n")


def forced_format(known: CallFormat | None) -> CallFormat:
    """Return the format in which a call can be forced."""
    writes = known is not None and (known.name in WRITTEN or known.name == "mistral")
    return known if known is not None and writes else ANY_MODEL


def call_grammar(
    made: CallFormat, schemas: Mapping[str, Any], one_call: bool, added: Mapping[str, int]
) -> str:
    """Write the grammar of one call or more.

    `schemas`: of each tool's parameters, by its name. `added`: ids of the added tokens, by text.
    """
    own = {*made.begin, *made.end, *made.around, *made.inner}
    special = {text: token for text, token in added.items() if text in own}
    written = WRITTEN.get(made.name)
    if made.name == "mistral":
        written = _MISTRAL_NEW if "[ARGS]" in added else _MISTRAL_OLD
    assert written is not None
    rules: list[str] = []
    for place, (name, schema) in enumerate(schemas.items()):
        if isinstance(written, WrittenInTags):
            rules += _tagged_call(place, name, schema, written, special)
        else:
            rules.append(_call(place, name, schema, written, special))
    names = " | ".join(f"call_{place}" for place in range(len(schemas)))
    more = f"({marks(written.between, special)} call)*" if _repeats(written, one_call) else ""
    parts = [marks(written.first, special), "call", more, marks(written.last, special)]
    head = [f"start: {' '.join(filter(None, parts))}", f"call: {names}", r"TEXT: /(.|\n)*/"]
    return "\n".join([*head, *rules])


def _repeats(written: Written | WrittenInTags, one_call: bool) -> bool:
    return not one_call and (bool(written.between) or isinstance(written, WrittenInTags))


def _call(place: int, name: str, schema: Any, written: Written, special: Mapping[str, int]) -> str:
    head, number, rest = written.before.replace("NAME", name).partition(_NUMBER)
    parts = [marks(head, special), "/[0-9]{1,3}/" if number else "", marks(rest, special)]
    parts += [_json(_parameters(schema)), marks(written.after, special)]
    return f"call_{place}: {' '.join(filter(None, parts))}"


def _tagged_call(
    place: int, name: str, schema: Any, written: WrittenInTags, special: Mapping[str, int]
) -> Iterator[str]:
    schema = _parameters(schema)
    named = schema.get("properties")
    required = schema.get("required")
    parts = []
    for at, (key, part) in enumerate((named if isinstance(named, dict) else {}).items()):
        rule = f"value_{place}_{at}"
        needed = isinstance(required, list) and key in required
        mark = marks(written.key.replace("KEY", key), special)
        parts.append(f"({mark} {rule}){'' if needed else '?'}")
        yield _value(rule, part, schema, written.value_end, special)
    before, after = written.before.replace("NAME", name), written.after
    inner = " ".join([marks(before, special), *parts, marks(after, special)])
    yield f"call_{place}: {inner}"


def _value(rule: str, part: Any, schema: Any, end: str, special: Mapping[str, int]) -> str:
    """Write the rule of one value with its end tag: text if it may be a string, else JSON."""
    ended = marks(end, special)
    values = part.get("enum") if isinstance(part, dict) else None
    if isinstance(values, list) and values and all(isinstance(one, str) for one in values):
        ways = " | ".join(json.dumps(one, ensure_ascii=False) for one in values)
        return f"{rule}: ({ways}) {ended}"
    if "string" in types_of(part):
        return f"{rule}[lazy]: TEXT {ended}" if "<[" not in ended else f"{rule}: TEXT {ended}"
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    return f"{rule}: {_json({**shared, **part})} {ended}"


def _parameters(schema: Any) -> dict[str, Any]:
    """Return the schema of a call's arguments: an object with the parameters named, no others."""
    if not schema or not isinstance(schema, dict):
        return {"type": "object", "properties": {}, "additionalProperties": False}
    made = (
        {"type": "object", **schema}
        if not {"$ref", "anyOf", "oneOf", "allOf"} & set(schema)
        else schema
    )
    if "properties" in made and "additionalProperties" not in made:
        made = {**made, "additionalProperties": False}
    return made


def _json(schema: Mapping[str, Any]) -> str:
    # What a schema says beyond what can be held is the model's to keep.
    options = {"whitespace_pattern": WHITESPACE, "lenient": True}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"
