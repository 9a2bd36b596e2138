"""Render a conversation with a template and the variables that transformers gives to it.

The model's own template is rendered in this process, one that came with a request in another.
"""

from __future__ import annotations

import functools
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
) -> str:
    """Render the prompt with a template. Raises `TextError`, and what `render` raises."""
    messages = [_visible(message) for message in conversation]
    seen = {
        **plain(dict(variables)),
        "tools": plain_tools(variables.get("tools")),
        "documents": plain_documents(variables.get("documents")),
        "messages": messages,
    }
    if not continue_final_message:
        return render(template, seen)
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
