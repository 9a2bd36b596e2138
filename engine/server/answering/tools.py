"""Read which tools a conversation may call, and how, by the names of OpenAI's chat completions."""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel

from engine.server.http.errors import bad_request

MOST_TOOLS = 256
LARGEST_TOOLS = 262_144
"""Bytes of all definitions as JSON: the template writes them into the prompt of each turn."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_KINDS = ("none", "auto", "required")


class ToolChoice(NamedTuple):
    """Hold the tools that may be called, and whether one must be. `field`: what asked for it."""

    tools: list[dict[str, Any]]
    kind: str  # none, auto, required, named

    @property
    def may_call(self) -> bool:
        return bool(self.tools) and self.kind != "none"

    @property
    def must_call(self) -> bool:
        return self.kind in ("required", "named")

    @property
    def schemas(self) -> dict[str, Any]:
        """Return the schema of each tool's parameters, by its name."""
        functions = [tool["function"] for tool in self.tools]
        return {each["name"]: each.get("parameters") or {} for each in functions}


class ToolFields(BaseModel):
    """Declare the fields about tools."""

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @functools.cached_property
    def choice(self) -> ToolChoice:
        """Return which tools may be called. Raises `ApiError` 400 for what can't be read."""
        given_tools = self.tools or []
        if len(given_tools) > MOST_TOOLS:
            raise bad_request(
                f"tools has {len(given_tools):,} entries; at most {MOST_TOOLS} are taken.", "tools"
            )
        tools = [_checked(tool, place) for place, tool in enumerate(given_tools)]
        _check_all(tools)
        given = self.tool_choice
        if isinstance(given, dict):
            return _of_object(given, tools)
        kind = given or ("auto" if tools else "none")
        if kind not in _KINDS:
            raise bad_request(
                f"tool_choice is {kind!r:.40}; it must be none, auto, required or an object that"
                " names a function.",
                "tool_choice",
            )
        if kind == "required" and not tools:
            raise bad_request("tool_choice is required, but there are no tools.", "tool_choice")
        return ToolChoice(tools if kind != "none" else [], kind)


def _of_object(given: dict[str, Any], tools: list[dict[str, Any]]) -> ToolChoice:
    kind = given.get("type")
    if kind == "function":
        return ToolChoice([_named(given, tools, "tool_choice")], "named")
    if kind == "allowed_tools":
        allowed = given.get("allowed_tools")
        allowed = allowed if isinstance(allowed, dict) else given
        mode, named = allowed.get("mode", "auto"), allowed.get("tools")
        if mode not in ("auto", "required") or not isinstance(named, list) or not named:
            raise bad_request(
                "tool_choice.allowed_tools needs a mode, auto or required, and a list of tools.",
                "tool_choice",
            )
        chosen = [_named(one, tools, "tool_choice.allowed_tools") for one in named]
        return ToolChoice([tool for tool in tools if tool in chosen], mode)
    raise bad_request(
        f"tool_choice.type is {kind!r:.40}; it must be function or allowed_tools.", "tool_choice"
    )


def _named(given: Any, tools: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """Return the tool that `given` names, in OpenAI's older or newer way."""
    function = given.get("function", given) if isinstance(given, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    found = next((tool for tool in tools if tool["function"]["name"] == name), None)
    if found is None:
        raise bad_request(f"{path} names {name!r:.70}, which is none of the tools.", "tool_choice")
    return found


def _checked(tool: dict[str, Any], place: int) -> dict[str, Any]:
    path = f"tools.{place}"
    kind = tool.get("type", "function")
    if kind != "function":
        raise bad_request(
            f"{path}.type is {kind!r:.40}; this server has tools of type function only.",
            f"{path}.type",
        )
    function = tool.get("function")
    if not isinstance(function, dict):
        raise bad_request(f"{path}.function must be an object with a name.", f"{path}.function")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise bad_request(
            f"{path}.function.name is {name!r:.80}; it must be 1 to 64 letters, digits, '_', '-' or"
            " '.'.",
            f"{path}.function.name",
        )
    if not isinstance(function.get("parameters") or {}, dict):
        raise bad_request(
            f"{path}.function.parameters must be an object, a JSON Schema.",
            f"{path}.function.parameters",
        )
    function = {key: value for key, value in function.items() if value is not None}
    return {**tool, "type": "function", "function": function}


def _check_all(tools: list[dict[str, Any]]) -> None:
    size = len(msgspec.json.encode(tools)) if tools else 0
    if size > LARGEST_TOOLS:
        raise bad_request(
            f"tools has {size:,} bytes of definitions; at most {LARGEST_TOOLS:,} are taken. Send"
            " fewer or shorter ones.",
            "tools",
        )
    names = [tool["function"]["name"] for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise bad_request(
                f"tools.{place} is a second tool with the name {name!r}.",
                f"tools.{place}.function.name",
            )
