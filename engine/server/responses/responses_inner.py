"""Translate a request of the Responses API into the one inner request."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.server.answering.passed import InnerRequest
from engine.server.answering.refused_kinds import shown
from engine.server.http.errors import ApiError, bad_request
from engine.server.responses.referred_items import ReferredItems
from engine.server.responses.response_items import ItemTranslation
from engine.server.responses.response_store import ResponseStore
from engine.server.responses.responses_body import InputTokensRequest, ResponsesRequest

OUTER_NAMES = {
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "parameters": "parameters",
}
MOST_ITEMS = 8_192
_PREFIXES = {"message": "msg_", "function_call": "fc_", "reasoning": "rs_"}


class AskedItems(NamedTuple):
    """Hold the items of a conversation: those of earlier requests and answers, and the new ones."""

    before: list[dict[str, Any]]
    given: list[dict[str, Any]]


def asked_items(
    body: ResponsesRequest | InputTokensRequest, store: ResponseStore, owner: int
) -> AskedItems:
    """Return the items of a request, each with an id. Raises `ApiError` 404 for an unknown answer.

    Without the earlier conversation nothing sensible could be answered: it is never left out.
    """
    before = []
    if body.previous_response_id is not None:
        kept = store.get(owner, body.previous_response_id)
        if kept is None:
            raise not_kept(body.previous_response_id, store, "previous_response_id")
        before = kept.conversation()
    given: Any = body.input
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"type": "message", "role": "user", "content": content}]
    number = len(before) + len(given)
    if number > MOST_ITEMS:
        raise bad_request(
            f"The conversation has {number:,} items; at most {MOST_ITEMS:,} are taken. Begin a new "
            "one.",
            "input",
        )
    own = uuid.uuid4().hex[:24]
    return AskedItems(before, [_with_id(item, f"{own}{at:08x}") for at, item in enumerate(given)])


def not_kept(response_id: str, store: ResponseStore, param: str) -> ApiError:
    """Make the error for an answer that isn't there."""
    why = (
        f"answers are kept for {store.lifetime_s:g} s, {store.max_bytes:,} bytes of them "
        "(--response-store-ttl, --response-store-bytes)"
        if store.max_bytes
        else "this server keeps none (--response-store-bytes 0)"
    )
    return ApiError(404, f"There is no response {shown(response_id)}; {why}.", param)


def inner_response(
    body: ResponsesRequest, items: AskedItems, store: ResponseStore, owner: int, ignored: list[str]
) -> InnerRequest:
    """Translate a request for an answer. ignored: its fields that have no effect."""
    fields = {
        **body.passed,
        "max_tokens": body.max_output_tokens,
        "stop": body.stop,
        "logprobs": body.wants_logprobs or None,
        "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
    }
    return _inner(body, fields, items, store, owner, ignored)


def inner_input(
    body: InputTokensRequest,
    items: AskedItems,
    store: ResponseStore,
    owner: int,
    ignored: list[str],
) -> InnerRequest:
    """Translate a request to count the tokens of a prompt."""
    fields = {"chat_template_kwargs": body.chat_template_kwargs}
    return _inner(body, fields, items, store, owner, ignored)


def _inner(
    body: ResponsesRequest | InputTokensRequest,
    fields: dict[str, Any],
    items: AskedItems,
    store: ResponseStore,
    owner: int,
    ignored: list[str],
) -> InnerRequest:
    translation = ItemTranslation(ReferredItems(store, owner).find)
    placed = [("previous_response_id", item) for item in items.before]
    placed += [(f"input.{place}", item) for place, item in enumerate(items.given)]
    messages, places = translation.translate(body.instructions, placed)
    if not messages:
        raise bad_request("input is empty; give at least one item.", "input")
    fields = {**fields, "model": body.model, "messages": messages, **_tool_fields(body)}
    if body.reasoning is not None:
        fields["reasoning_effort"] = body.reasoning.effort
    if body.text is not None and body.text.format is not None:
        fields["response_format"] = _response_format(body.text.format)
    return InnerRequest.of(fields, ignored=ignored, names=OUTER_NAMES, places=places)


def _with_id(item: Mapping[str, Any], own: str) -> dict[str, Any]:
    """Return an item with its type, and with an id, by which it can be referred to."""
    kind = item.get("type", "message")
    name = item.get("id")
    if not isinstance(name, str):
        prefix = _PREFIXES.get(kind, "item_") if isinstance(kind, str) else "item_"
        name = prefix + own
    return {**item, "type": kind, "id": name}


def _response_format(given: dict[str, Any]) -> dict[str, Any]:
    """Return a form as a chat has it: there the schema stands one level deeper."""
    if given.get("type") != "json_schema":
        return given
    described = {name: value for name, value in given.items() if name != "type"}
    if not isinstance(described.get("schema"), dict):
        raise bad_request("text.format.schema must be a JSON schema.", "text.format.schema")
    return {"type": "json_schema", "json_schema": described}


def _tool_fields(body: ResponsesRequest | InputTokensRequest) -> dict[str, Any]:
    tools = [_tool(tool, f"tools.{place}") for place, tool in enumerate(body.tools or ())]
    if not tools:
        if body.tool_choice not in (None, "auto", "none"):
            raise bad_request("tool_choice needs tools.", "tool_choice")
        return {}
    return {
        "tools": tools,
        "tool_choice": _tool_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
    }


def _tool(tool: dict[str, Any], path: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise bad_request(
            f"{path} is of type {shown(tool.get('type'))}, which this server doesn't have: it takes"
            " functions, which the client runs.",
            f"{path}.type",
        )
    if not isinstance(tool.get("name"), str):
        raise bad_request(f"{path}.name must be a string.", f"{path}.name")
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """Return a choice as a chat has it: there names stand one level deeper."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        given = choice.get("tools")
        allowed = [_allowed(tool) for tool in given] if isinstance(given, list) else given
        return {"type": kind, kind: {"mode": choice.get("mode"), "tools": allowed}}
    raise bad_request(
        f"tool_choice.type is {shown(kind)}; it must be function or allowed_tools.",
        "tool_choice.type",
    )


def _allowed(tool: Any) -> Any:
    if not isinstance(tool, dict) or "name" not in tool:
        return tool
    return {"type": tool.get("type"), "function": {"name": tool["name"]}}
