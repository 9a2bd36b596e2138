"""List how models write calls of tools, and their reasoning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine.text.messages.call_body import CallBody
from engine.text.messages.json_calls import JsonCalls

Schemas = Mapping[str, Any]
"""The parameters' schema of each tool, by its name."""


class CallFormat(NamedTuple):
    """Describe how calls are written: marks, and what reads the text between them.

    Without `begin`, an answer that begins with one of `starts` is a call.
    """

    name: str
    body: Callable[[Schemas], CallBody]
    begin: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    around: tuple[str, ...] = ()  # marks around all calls, which say nothing
    inner: tuple[str, ...] = ()  # tokens that the body reads as their text
    starts: str = ""
    new_id: str = "call"  # how ids look: "call", "nine" (Mistral's), "numbered" (Kimi's)


class ReasoningFormat(NamedTuple):
    """Describe how reasoning is written: what begins it, and what ends it."""

    name: str
    begin: str
    end: str


def _json(_schemas: Schemas) -> CallBody:
    return JsonCalls()


def _json_of_known(schemas: Schemas) -> CallBody:
    return JsonCalls(schemas)  # without a mark, an answer in JSON would be a call


HERMES = CallFormat("hermes", _json, ("<tool_call>",), ("</tool_call>",))
JSON = CallFormat("llama3_json", _json_of_known, starts="{", around=("<|python_tag|>",))
ANY_MODEL = JSON
"""What a call is written as that a grammar forces, if the model's own way isn't known."""

CALL_FORMATS = {made.name: made for made in (HERMES, JSON)}
"""By their names for --tool-call-parser."""
TRIED = (HERMES, JSON)
"""In the order in which they are tried on what a template writes."""

THINK = ReasoningFormat("think", "<think>", "</think>")
REASONING_FORMATS = {"think": THINK, **dict.fromkeys(("deepseek_r1", "qwen3"), THINK)}
"""By their names for --reasoning-parser."""
