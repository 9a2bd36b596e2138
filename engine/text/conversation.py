"""Render a conversation with a template and the variables that transformers gives to it.

The model's own template is rendered in this process, one that came with a request in another.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from engine.text.environment import ChatEnvironment
from engine.text.errors import TextError
from engine.text.plain import plain, plain_documents, plain_tools

Render = Callable[[str, dict[str, Any]], str]
"""Renders a template (text) with its variables. Raises `TextError`, or what the template raises."""

_MARK = "<the end of the message that goes on> "
"""Ends in a space, which a template that trims its messages removes."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_conversation(
    render: Render,
    template: str,
    conversation: list[dict[str, Any]],
    variables: Mapping[str, Any],
    continue_final_message: bool,
    parts: Mapping[int, list[Any]],
) -> str:
    """Render the prompt with a template. Raises `TextError`, and what `render` raises.

    parts: the text parts of messages that have several, by their places in `conversation`, where
    they are joined by newlines. A template that reads parts itself gets them as they are.
    """
    messages = [_visible(message) for message in conversation]
    seen = {
        **plain(dict(variables)),
        "tools": plain_tools(variables.get("tools")),
        "documents": plain_documents(variables.get("documents")),
        "messages": messages,
    }
    if not continue_final_message:
        text = _rendered(render, template, seen)
        return _with_parts(render, template, seen, parts, text) if parts else text
    final = messages[-1]["content"]
    messages[-1]["content"] += _MARK
    text = render(template, seen)
    before, mark, after = text.rpartition(_MARK.rstrip())
    if not mark or final.strip() not in text or "content" not in template:
        raise TextError(
            "continue_final_message",
            "The chat template doesn't write the final message as it is, so it can't be continued.",
        )
    return before if after.startswith(" ") else before.rstrip()


def _rendered(render: Render, template: str, seen: dict[str, Any]) -> str:
    """Render, with the arguments of tool calls as strings where a template fails on objects.

    Nearly all templates want objects, a few the string that is on the wire.
    """
    try:
        return render(template, seen)
    except Exception:  # a template is a program: anything may fail
        if not any(message.get("tool_calls") for message in seen["messages"]):
            raise
        messages = [_with_written_arguments(message) for message in seen["messages"]]
        try:
            text = render(template, {**seen, "messages": messages})
        except Exception:
            text = None
        if text is None:
            raise  # what it said of the objects
        return text


def _with_written_arguments(message: dict[str, Any]) -> dict[str, Any]:
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        written = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        calls.append(written if function is call else {**call, "function": written})
    return {**message, "tool_calls": calls} if calls else message


def _with_parts(
    render: Render, template: str, seen: dict[str, Any], parts: Mapping[int, list[Any]], text: str
) -> str:
    """Render with the text parts themselves, if the template reads them; else return `text`.

    It does where one part with the joined text renders as that text does, in these very messages:
    others write the list as Python shows it, or fail on it.
    """

    def filled(contents: Mapping[int, Any]) -> str:
        messages = [
            {**message, "content": contents.get(place, message["content"])}
            for place, message in enumerate(seen["messages"])
        ]
        return render(template, {**seen, "messages": messages})

    joined = {place: seen["messages"][place]["content"] for place in parts}
    try:
        if filled({place: [{"type": "text", "text": joined[place]}] for place in parts}) != text:
            return text
    except Exception:  # a template is a program: anything may fail
        return text
    return filled(plain(dict(parts)))


def render_here(template: str, variables: dict[str, Any]) -> str:
    """Render a trusted template. Raises what the template raises."""
    return _compiled(template).render(**variables)


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return ChatEnvironment().from_string(template)


def _visible(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a message without its None values, with its reasoning under the names that templates
    know."""
    given = plain({name: value for name, value in message.items() if value is not None})
    reasoning = next((given[name] for name in _REASONING if given.get(name) is not None), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}
