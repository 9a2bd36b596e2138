"""Translate Anthropic's messages, which are lists of blocks, into those of a chat.

One message of Anthropic's may become several: the results of tools are messages of their own,
before the text beside which they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.server.answering.passed import ChatMessages
from engine.server.answering.refused_kinds import not_taken, shown
from engine.server.http.errors import bad_request

BILLING = "x-anthropic-billing-header"
"""Begins a system block that has another text in each request, so no prefix could be found again.
It asks nothing of the model."""


class BlockTranslation:
    """Translate one request's system prompt and messages. Raises `ApiError` 400."""

    def __init__(self) -> None:
        self.ignored: list[str] = []  # what is left out, for the record
        self._names: dict[str, str] = {}  # of the tools that were called, by the call's id
        self._made = ChatMessages([], [])

    def translate(
        self, system: str | list[dict[str, Any]] | None, messages: Sequence[Mapping[str, Any]]
    ) -> ChatMessages:
        """Return the messages of the chat."""
        if not messages:
            raise bad_request("messages is empty; give at least one.", "messages")
        if system is not None:
            self._system(system, "system")
        for place, message in enumerate(messages):
            self._message(message, f"messages.{place}")
        return self._made

    def _add(self, place: str, role: str, **fields: Any) -> None:
        self._made.messages.append({"role": role, **fields})
        self._made.places.append(place)

    def _system(self, content: Any, path: str) -> None:
        texts = []
        for place, text in self._texts(content, path):
            if text.startswith(BILLING):
                self.ignored.append(f"{place} ({BILLING})")
            elif text:
                texts.append(text)
        if texts:
            self._add(path, "system", content="\n\n".join(texts))

    def _message(self, message: Mapping[str, Any], path: str) -> None:
        role, content = message.get("role"), message.get("content")
        if role == "system":
            self._system(content, f"{path}.content")
        elif role == "user":
            self._user(content, path)
        elif role == "assistant":
            self._assistant(content, path)
        else:
            raise bad_request(
                f"{path}.role is {shown(role)}; it must be user, assistant or system.",
                f"{path}.role",
            )

    def _user(self, content: Any, path: str) -> None:
        texts = []
        for place, block in _blocks(content, f"{path}.content"):
            kind = block.get("type")
            if kind == "text":
                texts.append(_text(block, place))
            elif kind == "tool_result":
                self._tool_result(block, place)
            else:
                raise not_taken(kind, place)
        if len(texts) == 1:
            self._add(path, "user", content=texts[0])
        elif texts:
            parts = [{"type": "text", "text": text} for text in texts]
            self._add(path, "user", content=parts)

    def _tool_result(self, block: Mapping[str, Any], path: str) -> None:
        called = block.get("tool_use_id")
        if not isinstance(called, str):
            raise bad_request(f"{path}.tool_use_id must be a string.", f"{path}.tool_use_id")
        content = block.get("content")
        texts = (
            [] if content is None else [text for _, text in self._texts(content, f"{path}.content")]
        )
        fields: dict[str, Any] = {"tool_call_id": called, "content": "\n".join(texts)}
        if called in self._names:
            fields["name"] = self._names[called]  # some templates show it
        self._add(path, "tool", **fields)

    def _assistant(self, content: Any, path: str) -> None:
        texts, thoughts, calls = [], [], []
        for place, block in _blocks(content, f"{path}.content"):
            kind = block.get("type")
            if kind == "text":
                texts.append(_text(block, place))
            elif kind == "thinking":
                thought = block.get("thinking")
                if not isinstance(thought, str):
                    raise bad_request(f"{place}.thinking must be a string.", f"{place}.thinking")
                thoughts.append(thought)
            elif kind == "tool_use":
                calls.append(self._tool_use(block, place))
            elif kind != "redacted_thinking":  # nobody but its maker can read it
                raise not_taken(kind, place)
        fields: dict[str, Any] = {"content": "".join(texts)}
        if thoughts:
            fields["reasoning_content"] = "\n".join(thoughts)
        if calls:
            fields["tool_calls"] = calls
        self._add(path, "assistant", **fields)

    def _tool_use(self, block: Mapping[str, Any], path: str) -> dict[str, Any]:
        called, name, arguments = block.get("id"), block.get("name"), block.get("input")
        for field, value in (("id", called), ("name", name)):
            if not isinstance(value, str):
                raise bad_request(f"{path}.{field} must be a string.", f"{path}.{field}")
        if not isinstance(arguments, Mapping):
            raise bad_request(f"{path}.input must be an object.", f"{path}.input")
        self._names[str(called)] = str(name)
        function = {"name": name, "arguments": dict(arguments)}
        return {"id": called, "type": "function", "function": function}

    @staticmethod
    def _texts(content: Any, path: str) -> Iterator[tuple[str, str]]:
        """Yield each text of a content that has texts alone, and where it stands."""
        for place, block in _blocks(content, path):
            if block.get("type") != "text":
                raise not_taken(block.get("type"), place)
            yield place, _text(block, place)


def _blocks(content: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the blocks of a content, and where each stands; a string is one of text."""
    if isinstance(content, str):
        yield path, {"type": "text", "text": content}
        return
    if not isinstance(content, list):
        raise bad_request(f"{path} must be a string or a list of blocks.", path)
    for place, block in enumerate(content):
        where = f"{path}.{place}"
        if not isinstance(block, Mapping):
            raise bad_request(f'{where} must be a block, an object with a "type".', where)
        yield where, block


def _text(block: Mapping[str, Any], path: str) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise bad_request(f"{path}.text must be a string.", f"{path}.text")
    return text
