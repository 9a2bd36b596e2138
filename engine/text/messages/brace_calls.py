"""Read calls in Gemma's own notation, while they are written.

    call:weather{city:<|"|>Oslo<|"|>,days:3,tags:[<|"|>a<|"|>]}

Keys are bare or quoted, strings stand between quote tokens, and nothing in them is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from engine.text.messages.call_body import Arguments, Began, CallEvent
from engine.text.messages.marks import overlap
from engine.text.messages.tagged_calls import typed

QUOTE = '<|"|>'
_HEAD = re.compile(r"\s*call:\s*([^\s{]+)\s*")
_WORD = re.compile(r"[^,:{}\[\]<]+")
_LONGEST_HEAD = 1_024  # characters
_BARE = frozenset({"number", "boolean", "null"})
_CLOSES = {"{": "}", "[": "]"}


class BraceCalls:
    """Read one call. What is told of its arguments is JSON."""

    def __init__(self) -> None:
        self.broken = False
        self.in_string = False
        self._text = ""  # not read yet
        self._named = False
        self._open = ""  # brackets that are open, the innermost last
        self._next = "value"  # key, colon, value, end; "?": or the bracket's end

    @property
    def unread(self) -> str:
        return self._text

    def feed(self, text: str) -> Iterator[CallEvent]:
        self._text += text
        if not self._named and not self.broken:
            at = self._text.find("{")
            if at < 0:
                self.broken = len(self._text) > _LONGEST_HEAD
                return
            head = _HEAD.fullmatch(self._text[:at])
            if head is None:
                self.broken = True
                return
            self._named, self._text = True, self._text[at:]
            yield Began(head[1])
        told = "".join(self._read())
        if told:
            yield Arguments(told)

    def end(self, cut: bool) -> Iterator[CallEvent]:
        self.broken |= self._next != "done" or bool(self._text.strip())
        yield from ()

    # ------------------------------------------------------------------------------ details

    def _read(self) -> Iterator[str]:
        """Yield JSON for what can be read of the text."""
        while self._text and not self.broken and self._named:
            if self.in_string:
                at = self._text.find(QUOTE)
                certain = len(self._text) - overlap(self._text, QUOTE) if at < 0 else at
                if certain:
                    yield json.dumps(self._text[:certain], ensure_ascii=False)[1:-1]
                self._text = self._text[certain:]
                if at < 0:
                    return
                self._text = self._text[len(QUOTE) :]
                self.in_string = False
                yield '"'
                continue
            character = self._text[0]
            if character.isspace():
                self._text = self._text[1:]
            elif character == "<":
                if QUOTE.startswith(self._text) and self._text != QUOTE:
                    return  # it may become one
                if not self._text.startswith(QUOTE) or not self._takes_string():
                    self.broken = True
                    return
                self._text = self._text[len(QUOTE) :]
                self.in_string = True
                yield '"'
            elif character in ",:{}[]":
                told = self._mark(character)
                if told is None:
                    self.broken = True
                    return
                self._text = self._text[1:]
                yield told
            else:
                word = _WORD.match(self._text)
                if word is None or word.end() == len(self._text):
                    return  # it may go on
                written = word[0].strip()
                wants_key = self._next.startswith("key")
                if not self._takes_string():
                    self.broken = True
                    return
                self._text = self._text[word.end() :]
                quoted = json.dumps(written, ensure_ascii=False)
                yield quoted if wants_key else typed(written, _BARE)

    def _takes_string(self) -> bool:
        """Return whether a key or a value may stand here, and go on behind it."""
        if self._next.rstrip("?") not in ("key", "value"):
            return False
        self._next = "colon" if self._next.startswith("key") else "end"
        return True

    def _mark(self, mark: str) -> str | None:
        """Return a mark as JSON has it; None where it can't stand."""
        inner = self._open[-1:]
        if mark in _CLOSES and self._next.startswith("value"):
            self._open += mark
            self._next = "key?" if mark == "{" else "value?"
            return mark
        if inner and mark == _CLOSES[inner] and (self._next == "end" or self._next[-1] == "?"):
            self._open = self._open[:-1]
            self._next = "end" if self._open else "done"
            return mark
        if mark == "," and self._next == "end" and inner:
            self._next = "key" if inner == "{" else "value"
            return ", "
        if mark == ":" and self._next == "colon":
            self._next = "value"
            return ": "
        return None
