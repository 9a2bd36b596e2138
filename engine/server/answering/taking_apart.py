"""Decide how the answers to a conversation are taken apart: which tools, which marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.server.answering.tools import ToolChoice
from engine.server.http.errors import bad_request
from engine.text.messages.call_grammar import forced_format
from engine.text.messages.formats import CallFormat
from engine.text.messages.found import MessageFormats
from engine.text.messages.rules import MessageRules


def calls_of(choice: ToolChoice, formats: MessageFormats) -> CallFormat | None:
    """Return how calls are written; None if there are none. Raises `ApiError` 400 if it isn't
    known."""
    if not choice.may_call:
        return None
    if choice.must_call:
        return forced_format(formats.calls)
    if not formats.takes_tools:
        raise bad_request(
            "tools would not reach the model: its chat template has no place for them. Leave them"
            " out, start the server with --chat-template, or force a call with tool_choice.",
            "tools",
        )
    if formats.calls is None:
        raise bad_request(
            "It isn't known how this model writes calls. Start the server with --tool-call-parser,"
            " or force a call with tool_choice.",
            "tools",
        )
    return formats.calls


def rules_for(
    choice: ToolChoice,
    formats: MessageFormats,
    messages: Sequence[dict[str, Any]],
    prompt: str | list[int],
    *,
    one_call: bool,
    skip_special_tokens: bool,
    hides_reasoning: bool = False,
) -> MessageRules | None:
    """Return how the answers are taken apart; None if all of their text is content."""
    calls, reasoning = calls_of(choice, formats), formats.reasoning
    if calls is None and reasoning is None:
        return None
    return MessageRules(
        calls=calls,
        reasoning=reasoning,
        begins_reasoning=reasoning is not None
        and isinstance(prompt, str)
        and prompt.rstrip().endswith(reasoning.begin),
        schemas=choice.schemas,
        num_earlier_calls=sum(len(message.get("tool_calls") or ()) for message in messages),
        must_call=choice.must_call,
        one_call=calls is not None and one_call,
        skip_special_tokens=skip_special_tokens,
        hides_reasoning=hides_reasoning,
    )
