"""Translate the items of a Responses request into the messages of a chat.

What the assistant said, thought and called without a word of somebody else between is one message
of a chat, and several items here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.server.answering.passed import ChatMessages
from engine.server.answering.refused_kinds import not_taken, shown
from engine.server.http.errors import bad_request
from engine.server.responses.response_store import REFERENCE

Item = Mapping[str, Any]
TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The types of parts that are text, and where they have it."""


class ItemTranslation:
    """Translate items. `find` returns an item that was given or made earlier, by its id."""

    def __init__(self, find: Callable[[str], Item | None]):
        self._find = find
        self._names: dict[str, str] = {}  # of the tools that were called, by the call's id
        self._made = ChatMessages([], [])

    def translate(
        self, instructions: str | None, items: Sequence[tuple[str, Item]]
    ) -> ChatMessages:
        """Return the messages of the chat. items: each with its place in the request.

        Raises `ApiError` 400.
        """
        if instructions:
            self._add("instructions", {"role": "system", "content": instructions})
        for path, item in items:
            self._item(path, item)
        return self._made

    def _add(self, path: str, message: dict[str, Any]) -> None:
        self._made.messages.append(message)
        self._made.places.append(path)

    def _item(self, path: str, item: Item) -> None:
        kind = item.get("type", "message")
        if kind == REFERENCE:
            name = item.get("id")
            found = self._find(name) if isinstance(name, str) else None
            if found is None:
                raise bad_request(f"{path}.id: there is no such item here.", f"{path}.id")
            item, kind = found, found.get("type", "message")
        handlers = {
            "message": self._message,
            "function_call": self._function_call,
            "function_call_output": self._function_call_output,
            "reasoning": self._reasoning,
        }
        handle = handlers.get(kind) if isinstance(kind, str) else None
        if handle is None:
            raise bad_request(
                f"{path} is of type {shown(kind)}, which this server doesn't take.", path
            )
        handle(path, item)

    def _message(self, path: str, item: Item) -> None:
        role = item.get("role")
        if role not in ("user", "system", "developer", "assistant"):
            raise bad_request(
                f"{path}.role is {shown(role)}; it must be user, system, developer or assistant.",
                f"{path}.role",
            )
        texts = _texts(item.get("content"), f"{path}.content")
        if role != "assistant":
            parts = [{"type": "text", "text": text} for text in texts]
            self._add(path, {"role": role, "content": parts if len(texts) > 1 else "".join(texts)})
            return
        turn = self._turn(path, lambda turn: "content" not in turn and "tool_calls" not in turn)
        turn["content"] = "".join(texts)

    def _reasoning(self, path: str, item: Item) -> None:
        texts = []
        for name in ("content", "summary"):
            for place, part in enumerate(_list(item.get(name), f"{path}.{name}")):
                where = f"{path}.{name}.{place}"
                if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                    raise bad_request(f"{where} must be an object with a text.", where)
                texts.append(part["text"])
            if texts:
                break
        if texts:  # else it is encrypted: nobody but its maker can read it
            turn = self._turn(path, lambda turn: False)
            turn["reasoning_content"] = "\n".join(texts)

    def _function_call(self, path: str, item: Item) -> None:
        called, name, arguments = (item.get(key) for key in ("call_id", "name", "arguments"))
        for key, value in (("call_id", called), ("name", name), ("arguments", arguments)):
            if not isinstance(value, str):
                raise bad_request(f"{path}.{key} must be a string.", f"{path}.{key}")
        self._names[str(called)] = str(name)
        turn = self._turn(path, lambda turn: True)
        function = {"name": name, "arguments": arguments}
        calls = turn.setdefault("tool_calls", [])
        calls.append({"id": called, "type": "function", "function": function})

    def _function_call_output(self, path: str, item: Item) -> None:
        called = item.get("call_id")
        if not isinstance(called, str):
            raise bad_request(f"{path}.call_id must be a string.", f"{path}.call_id")
        texts = _texts(item.get("output"), f"{path}.output")
        message = {"role": "tool", "tool_call_id": called, "content": "\n".join(texts)}
        if called in self._names:
            message["name"] = self._names[called]  # some templates show it
        self._add(path, message)

    def _turn(self, path: str, goes_on: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the assistant's last message if it goes on, else a new one."""
        messages = self._made.messages
        if not messages or messages[-1]["role"] != "assistant" or not goes_on(messages[-1]):
            self._add(path, {"role": "assistant"})
        return messages[-1]


def _list(value: Any, path: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_request(f"{path} must be a list.", path)
    return value


def _texts(content: Any, path: str) -> list[str]:
    """Return the texts of a content. Raises `ApiError` 400 for any other part."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise bad_request(f"{path} must be a string or a list of parts.", path)
    return [_text(part, f"{path}.{place}") for place, part in enumerate(content)]


def _text(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    name = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        raise not_taken(kind, path)
    text = part.get(name)
    if not isinstance(text, str):
        raise bad_request(f"{path}.{name} must be a string.", f"{path}.{name}")
    return text
