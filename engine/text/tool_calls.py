"""Parse the tool calls of earlier answers for chat templates.

On the wire `arguments` are a JSON object written as a string. Templates expect the object: most
would write the string as JSON once more, others fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from engine.text.errors import TextError


def parsed_tool_calls(calls: Any, path: str) -> list[dict[str, Any]]:
    """Return the calls with their `arguments` as objects. The caller's calls are not changed.

    path: the field, for errors. Raises `TextError`.
    """
    if not isinstance(calls, list | tuple):
        raise TextError(path, f"{path} must be a list of calls.")
    return [_parsed(call, f"{path}.{place}") for place, call in enumerate(calls)]


def _parsed(call: Any, path: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise TextError(path, f'{path} must be an object with a "function".')
    # Templates also accept a call without its wrapper: a name, and arguments.
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise TextError(
            f"{path}.function", f'{path}.function must be an object with a "name", a string.'
        )
    parsed = {**function, "arguments": _arguments(function, path)}
    return parsed if function is call else {**call, "function": parsed}


def _arguments(function: Mapping[str, Any], path: str) -> dict[str, Any]:
    arguments = function.get("arguments")
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}  # the function takes no arguments
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        raise TextError(
            f"{path}.function.arguments",
            f"{path}.function.arguments must be a JSON object, as a string or as it is.",
        )
    return dict(arguments)
