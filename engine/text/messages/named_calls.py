"""Read calls that are a name, a mark, and arguments as JSON, while they are written.

weather[ARGS]{"city": "Oslo"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.text.messages.call_body import Arguments, Began, CallBody, CallEvent
from engine.text.messages.json_calls import JsonCalls, JsonValue

_LONGEST_HEAD = 1_024  # characters


class NamedCalls:
    """Read calls whose arguments are JSON behind a head.

    `head`: matches all before the arguments, and has the groups `name` and perhaps `id`.
    """

    def __init__(self, head: re.Pattern[str]):
        self.broken = False
        self._head = head
        self._written = ""
        self._value: JsonValue | None = None

    @property
    def in_string(self) -> bool:
        return self._value is not None and self._value.in_string

    @property
    def unread(self) -> str:
        return self._written

    def feed(self, text: str) -> Iterator[CallEvent]:
        if self._value is None:
            self._written += text
            at = self._written.find("{")
            if self.broken or at < 0:
                self.broken |= len(self._written) > _LONGEST_HEAD
                return
            found = self._head.fullmatch(self._written[:at].strip())
            if found is None:
                self.broken = True
                return
            text, self._written = self._written[at:], ""
            self._value = JsonValue()
            yield Began(found["name"], found.groupdict().get("id"))
        if not self._value.done:
            end = self._value.feed(text, 0)
            if end:
                yield Arguments(text[:end])  # what follows is a fence

    def end(self, cut: bool) -> Iterator[CallEvent]:
        if self._value is None and not cut and not self.broken:
            found = self._head.fullmatch(self._written.strip())
            if found is not None:  # it has no arguments
                self._written = ""
                yield Began(found["name"], found.groupdict().get("id"))
                yield Arguments("{}")
                return
        self.broken |= self._value is None or not self._value.done


class EitherCalls:
    """Read JSON if the text begins like it, else named calls: Mistral's older and newer way."""

    def __init__(self, head: re.Pattern[str]):
        self._head = head
        self._body: CallBody | None = None
        self._space = ""

    @property
    def broken(self) -> bool:
        return self._body is None or self._body.broken

    @property
    def in_string(self) -> bool:
        return self._body is not None and self._body.in_string

    @property
    def unread(self) -> str:
        return self._space if self._body is None else self._body.unread

    def feed(self, text: str) -> Iterator[CallEvent]:
        if self._body is None:
            self._space += text
            begun = self._space.lstrip()
            if not begun:
                return
            self._body = JsonCalls() if begun[0] in "[{" else NamedCalls(self._head)
            text, self._space = self._space, ""
        yield from self._body.feed(text)

    def end(self, cut: bool) -> Iterator[CallEvent]:
        if self._body is not None:
            yield from self._body.end(cut)
