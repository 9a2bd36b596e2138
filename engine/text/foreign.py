"""What a template of a request gets to see: the variables that transformers gives to a model's own.

`transformers` itself renders only in this process, and such a template is rendered in another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.text.errors import TextError

Foreign = Callable[[str, dict[str, Any]], str]
"""Renders a template (text) with its variables. Raises `TextError`."""

_MARK = "<the end of the message that goes on> "
"""A template that trims its messages takes the last character away."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_foreign(
    foreign: Foreign,
    template: str,
    conversation: list[dict[str, Any]],
    variables: Mapping[str, Any],
    continue_final_message: bool,
) -> str:
    """The prompt as a request's own template writes it. Raises `TextError`."""
    messages = [_visible(message) for message in conversation]
    if continue_final_message:
        messages[-1]["content"] += _MARK
    text = foreign(template, {"tools": None, "documents": None, **variables, "messages": messages})
    if not continue_final_message:
        return text
    before, mark, after = text.rpartition(_MARK.rstrip())
    if not mark:
        raise TextError(
            "continue_final_message",
            "The chat template doesn't write the final message as it is, so it can't be continued.",
        )
    return before if after.startswith(" ") else before.rstrip()


def _visible(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is None, its reasoning under the names that templates know."""
    given = {name: value for name, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}
