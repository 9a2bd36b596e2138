"""Translate a request of Anthropic's API into the one inner request."""

from __future__ import annotations

from typing import Any

from engine.server.answering.passed import InnerRequest
from engine.server.http.errors import bad_request
from engine.server.messages.message_blocks import BlockTranslation
from engine.server.messages.messages_body import (
    AskedFields,
    CountTokensRequest,
    MessagesRequest,
    ToolUseChoice,
)

OUTER_NAMES = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "parameters": "input_schema",
}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def inner_request(body: MessagesRequest, ignored: list[str]) -> InnerRequest:
    """Translate a request for a message. ignored: its fields that have no effect."""
    fields = {**body.passed, "max_tokens": body.max_tokens, "stop": body.stop_sequences}
    return _inner(body, fields, ignored)


def inner_count(body: CountTokensRequest, ignored: list[str]) -> InnerRequest:
    """Translate a request to count the tokens of a prompt."""
    return _inner(body, {}, ignored)


def _inner(
    body: MessagesRequest | CountTokensRequest, fields: dict[str, Any], ignored: list[str]
) -> InnerRequest:
    translation = BlockTranslation()
    messages, places = translation.translate(body.system, body.messages)
    fields = {
        **fields,
        "model": body.model,
        "messages": messages,
        **_continued(messages, places),
        **_tool_fields(body),
        "chat_template_kwargs": _template_variables(body),
    }
    if body.output_config is not None:
        fields["reasoning_effort"] = body.output_config.effort
        if body.output_config.format is not None:
            described = {"name": "answer", "schema": body.output_config.format.json_schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": described}
    return InnerRequest.of(
        fields, ignored=[*ignored, *translation.ignored], names=OUTER_NAMES, places=places
    )


def _continued(messages: list[dict[str, Any]], places: list[str]) -> dict[str, Any]:
    """Return the fields that make the answer continue the assistant's last message.

    An empty last message is removed, since it changes nothing.
    """
    while messages and _is_empty_answer(messages[-1]):
        messages.pop()
        places.pop()
    if not messages:
        raise bad_request("messages has no text.", "messages")
    if messages[-1]["role"] != "assistant":
        return {}
    if messages[-1].get("tool_calls"):
        raise bad_request(
            f"{places[-1]} calls tools, and their results are missing: a message of the user with "
            "tool_result blocks.",
            places[-1],
        )
    return {"continue_final_message": True, "add_generation_prompt": False}


def _is_empty_answer(message: dict[str, Any]) -> bool:
    is_answer = message["role"] == "assistant" and not message.get("tool_calls")
    return is_answer and not message["content"]


def _template_variables(body: AskedFields) -> dict[str, Any] | None:
    given: dict[str, Any] = getattr(body, "chat_template_kwargs", None) or {}
    if body.thinking is not None:
        given = {"enable_thinking": body.thinking.type != "disabled", **given}
    return given or None


def _tool_fields(body: AskedFields) -> dict[str, Any]:
    tools = [_tool(tool, f"tools.{place}") for place, tool in enumerate(body.tools or ())]
    if not tools:
        return {}
    choice = body.tool_choice
    if choice is None:
        return {"tools": tools}
    return {
        "tools": tools,
        "tool_choice": _tool_choice(choice),
        "parallel_tool_calls": not choice.disable_parallel_tool_use,
    }


def _tool_choice(choice: ToolUseChoice) -> str | dict[str, Any]:
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        raise bad_request("tool_choice.name: this field is required.", "tool_choice.name")
    return {"type": "function", "function": {"name": choice.name}}


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise bad_request(
            f"{path} is of type {kind!r:.40}, which this server doesn't have: it takes tools that "
            "the client runs.",
            f"{path}.type",
        )
    if not isinstance(tool.get("name"), str):
        raise bad_request(f"{path}.name must be a string.", f"{path}.name")
    function = {
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("input_schema"),
        "strict": tool.get("strict"),
    }
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": given}
