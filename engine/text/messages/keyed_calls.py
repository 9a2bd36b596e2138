"""Read calls whose name is the key of their arguments, while they are written.

[{"weather": {"city": "Oslo"}}, {"clock": {}}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from engine.text.messages.call_body import Arguments, Began, CallEvent
from engine.text.messages.json_calls import JsonValue

_SPACE = frozenset(" \t\r\n")


class KeyedCalls:
    """Read objects with one entry each."""

    def __init__(self) -> None:
        self.broken = False
        self._state = "between"  # key, colon, brace, value, close
        self._value = JsonValue()
        self._key = ""
        self._unread = ""

    @property
    def in_string(self) -> bool:
        return self._state in ("key", "value") and self._value.in_string

    @property
    def unread(self) -> str:
        return self._unread

    def feed(self, text: str) -> Iterator[CallEvent]:
        place = 0
        while place < len(text):
            before = place
            if self._state in ("key", "value") and not self.broken:
                place = self._value.feed(text, place)
                if self._state == "value" and place > before:
                    yield Arguments(text[before:place])
                elif self._state == "key":
                    self._key += text[before:place]
                if self._value.done:
                    self._state = "colon" if self._state == "key" else "close"
            else:
                name = self._between(text[place])
                if name:
                    yield Began(name)
                    continue  # the brace is the arguments' first character
                place += 1
            if self._state not in ("value", "close") or self.broken:
                self._unread += text[before:place]

    def end(self, cut: bool) -> Iterator[CallEvent]:
        self.broken |= self._state != "between"
        yield from ()

    def _between(self, character: str) -> str:
        """Take a character outside of keys and arguments; return a name where those begin."""
        if self.broken or character in _SPACE:
            return ""
        if self._state == "between":
            if character == "{":
                self._state, self._value, self._key = "key", JsonValue(), ""
            self.broken = character not in "{,[]"
        elif self._state == "colon":
            self._state, self.broken = "brace", character != ":"
        elif self._state == "brace":
            name = self._name() if character == "{" else ""
            self.broken = not name
            if name:
                self._state, self._value, self._unread = "value", JsonValue(), ""
            return name
        else:
            self._state, self.broken = "between", character != "}"
        return ""

    def _name(self) -> str:
        try:
            name = json.loads(self._key)
        except (ValueError, RecursionError):
            return ""
        return name if isinstance(name, str) else ""
