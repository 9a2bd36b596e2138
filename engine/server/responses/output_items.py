"""Build the items of an answer of the Responses API, with the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ItemEvent = tuple[str, dict[str, Any]]
"""Its name, without "response.", and its fields beside those that say which item it is."""


class OutputItem:
    """Hold one item, as far as it is written."""

    kind: str

    def __init__(self, name: str):
        self.id = name
        self.status = "completed"  # when it is done
        self.texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def begun(self) -> dict[str, Any]:
        """Write the item as its first event has it."""
        return {
            "id": self.id,
            "type": self.kind,
            "status": "in_progress",
            **self._fields("", False),
        }

    def whole(self) -> dict[str, Any]:
        """Write the item as it is now."""
        return self._json(self.status, self.text, has_text=True)

    def opened(self) -> Iterator[ItemEvent]:
        """Yield the events after the first one, before any text."""
        return iter(())

    def delta(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[ItemEvent]:
        """Add text; yield its events."""
        self.texts.append(text)
        yield self._delta(text, logprobs)

    def closed(self) -> Iterator[ItemEvent]:
        """Yield the events at the end, before the last one."""
        raise NotImplementedError

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> ItemEvent:
        raise NotImplementedError

    def _json(self, status: str, text: str, has_text: bool) -> dict[str, Any]:
        fields = self._fields(text, has_text)
        return {"id": self.id, "type": self.kind, "status": status, **fields}

    def _fields(self, text: str, has_text: bool) -> dict[str, Any]:
        """Return the item's other fields, with this text or without any."""
        raise NotImplementedError


class MessageItem(OutputItem):
    """Hold the text for the user."""

    kind = "message"

    def __init__(self, name: str):
        super().__init__(name)
        self.logprobs: list[dict[str, Any]] = []

    def opened(self) -> Iterator[ItemEvent]:
        yield "content_part.added", {"content_index": 0, "part": self._part("", [])}

    def delta(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[ItemEvent]:
        self.logprobs += logprobs
        return super().delta(text, logprobs)

    def closed(self) -> Iterator[ItemEvent]:
        told = {"content_index": 0, "text": self.text, "logprobs": self.logprobs}
        yield "output_text.done", told
        part = self._part(self.text, self.logprobs)
        yield "content_part.done", {"content_index": 0, "part": part}

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> ItemEvent:
        return "output_text.delta", {"content_index": 0, "delta": text, "logprobs": logprobs}

    def _fields(self, text: str, has_text: bool) -> dict[str, Any]:
        content = [self._part(text, self.logprobs)] if has_text else []
        return {"role": "assistant", "content": content}

    @staticmethod
    def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class ReasoningItem(OutputItem):
    """Hold what the model thinks: as it is, or in the place of a summary for clients that ask for
    one and know no other form."""

    kind = "reasoning"

    def __init__(self, name: str, as_summary: bool):
        super().__init__(name)
        self.as_summary = as_summary
        self._event = "reasoning_summary_text" if as_summary else "reasoning_text"
        self._part_event = "reasoning_summary_part" if as_summary else "content_part"
        self._index = {"summary_index" if as_summary else "content_index": 0}

    def opened(self) -> Iterator[ItemEvent]:
        yield f"{self._part_event}.added", {**self._index, "part": self._part("")}

    def closed(self) -> Iterator[ItemEvent]:
        yield f"{self._event}.done", {**self._index, "text": self.text}
        yield f"{self._part_event}.done", {**self._index, "part": self._part(self.text)}

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> ItemEvent:
        return f"{self._event}.delta", {**self._index, "delta": text}

    def _fields(self, text: str, has_text: bool) -> dict[str, Any]:
        parts = [self._part(text)] if has_text else []
        if self.as_summary:
            return {"summary": parts}
        return {"summary": [], "content": parts}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "summary_text" if self.as_summary else "reasoning_text", "text": text}


class CallItem(OutputItem):
    """Hold one call of a function."""

    kind = "function_call"

    def __init__(self, name: str, call_id: str, function: str):
        super().__init__(name)
        self.call_id = call_id
        self.function = function

    def closed(self) -> Iterator[ItemEvent]:
        told = {"name": self.function, "arguments": self.text}
        yield "function_call_arguments.done", told

    def _delta(self, text: str, logprobs: list[dict[str, Any]]) -> ItemEvent:
        return "function_call_arguments.delta", {"delta": text}

    def _fields(self, text: str, has_text: bool) -> dict[str, Any]:
        return {"call_id": self.call_id, "name": self.function, "arguments": text}
