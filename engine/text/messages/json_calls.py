"""Read calls that are JSON objects with a name and arguments, while they are written.

    {"name": "weather", "arguments": {"city": "Oslo"}}

One object, several, or a list of them. The arguments are passed on as the model wrote them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator

from engine.text.messages.call_body import Arguments, Began, CallEvent

NAMES = ("name", "tool_name", "function_name")
ARGUMENTS = ("arguments", "parameters", "args")
_BETWEEN = frozenset(" \t\r\n,;[]")
_SPACE = frozenset(" \t\r\n")
_STRING_END = re.compile(r'["\\]')


class JsonValue:
    """Follow one JSON value, to know where it ends."""

    def __init__(self) -> None:
        self.done = False
        self.in_string = False
        self._escaped = False
        self._depth = 0
        self._scalar = False

    def feed(self, text: str, start: int) -> int:
        """Read on from `start`; return the place behind what belongs to the value."""
        place = start
        while place < len(text) and not self.done:
            if self.in_string:
                place = self._in_string(text, place)
                continue
            character = text[place]
            if self._scalar and (character in _SPACE or character in ",}]"):
                self.done = True
                return place
            if character == '"':
                self.in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                if not self._depth:  # there was no value
                    self.done = True
                    return place
                self._depth -= 1
                self.done = self._depth == 0
            elif not self._depth and character not in _SPACE:
                self._scalar = True
            place += 1
        return place

    def _in_string(self, text: str, place: int) -> int:
        if self._escaped:
            self._escaped = False
            return place + 1
        found = _STRING_END.search(text, place)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._escaped = True
        else:
            self.in_string = False
            self.done = self._depth == 0
        return found.end()


class JsonCalls:
    """Read calls that are JSON objects. `known`: the names that a call may have."""

    def __init__(self, known: Container[str] | None = None) -> None:
        self.broken = False
        self._known = known
        self._unread = ""  # what no call was told of, as it is written
        self._called = False
        self._arguments = ArgumentsText()
        self._end_call()

    def _end_call(self) -> None:
        self._state = "between"  # key, colon, value, comma
        self._key = ""
        self._value: JsonValue | None = None
        self._written = ""  # of a key, or of a value that is read whole
        self._name: str | None = None
        self._id: str | None = None
        self._arguments = ArgumentsText()
        self._arguments_key = ""
        self._reads_arguments = False  # this value is the arguments

    @property
    def in_string(self) -> bool:
        return self._value is not None and self._value.in_string

    @property
    def unread(self) -> str:
        return self._unread

    def feed(self, text: str) -> Iterator[CallEvent]:
        place = 0
        while place < len(text):
            if self.broken:
                self._unread += text[place:]
                return
            end = self._step(text, place)
            if self._name is None or self.broken:
                self._unread += text[place:end]
            yield from self._events()
            place = end

    def end(self, cut: bool) -> Iterator[CallEvent]:
        if self._name is not None:
            yield from self._arguments.end(cut)
        self.broken |= self._state != "between"

    def _step(self, text: str, place: int) -> int:
        if self._value is not None:
            return self._in_value(text, place)
        character = text[place]
        if self._state == "between":
            if character == "{":
                if self._called:  # what stands between two calls says nothing
                    self._unread = ""
                self._state = "key"
            elif character not in _BETWEEN:
                self.broken = True
        elif character in _SPACE:
            pass
        elif self._state in ("key", "value"):
            if self._state == "key" and character == "}":
                self._state = "ended"
            elif self._state == "key" and character != '"':
                self.broken = True
            else:
                self._value, self._written = JsonValue(), ""
                self._reads_arguments = self._state == "value" and self._are_arguments()
                return place
        elif self._state == "colon":
            self._state, self.broken = "value", character != ":"
        elif character == "}":
            self._state = "ended"
        else:
            self._state, self.broken = "key", character != ","
        return place + 1

    def _are_arguments(self) -> bool:
        """Return whether the value of this key is the call's arguments: of several, the first of
        ARGUMENTS. A call whose other ones were told can't be read."""
        if self._key not in ARGUMENTS:
            return False
        given = self._arguments_key
        if given and ARGUMENTS.index(given) <= ARGUMENTS.index(self._key):
            return False
        if given and self._name is not None:
            self.broken = True
            return False
        if given:  # nothing was told of them
            self._arguments = ArgumentsText()
        self._arguments_key = self._key
        return True

    def _in_value(self, text: str, place: int) -> int:
        value = self._value
        assert value is not None
        end = value.feed(text, place)
        new = text[place:end]
        if self._reads_arguments:
            self._arguments.add(new)
        else:
            self._written += new
        if value.done:
            self._value_ended()
        return end

    def _value_ended(self) -> None:
        self._value = None
        if self._state == "key":
            self._key = str(_read(self._written))
            self._state = "colon"
            return
        self._state = "comma"
        if self._reads_arguments:
            self._arguments.complete = True
            return
        read = _read(self._written)
        if self._key in NAMES and isinstance(read, str) and self._name is None:
            if self._known is not None and read not in self._known:
                self.broken = True
                return
            self._name = read
            self._unread = ""
            self._called = True
        elif self._key == "id" and isinstance(read, str):
            self._id = read

    def _events(self) -> Iterator[CallEvent]:
        if self._name is not None:
            yield from self._arguments.told(Began(self._name, self._id))
        if self._state == "ended":
            if self._name is not None:
                yield from self._arguments.end(cut=False)
                self._end_call()
            else:
                self.broken = True


class ArgumentsText:
    """Tell the arguments of one call as they are written, behind its name."""

    def __init__(self) -> None:
        self.complete = False
        self._pending: list[str] = []
        self._kind = ""  # the first character
        self._told_name = False
        self._told = False

    def add(self, text: str) -> None:
        """Add new text of the value."""
        if not self._kind:
            text = text.lstrip()
            self._kind = text[:1]
        if text:
            self._pending.append(text)

    def told(self, began: Began) -> Iterator[CallEvent]:
        """Yield what can be told now: the name, once, and new text of the arguments."""
        if not self._told_name:
            self._told_name = True
            yield began
        # Anything but an object is read whole: arguments in a string, or null for none.
        if self._pending and (self._kind == "{" or self.complete):
            yield from self._tell()

    def end(self, cut: bool) -> Iterator[CallEvent]:
        """Yield the rest. A call without arguments has an empty object, unless it was cut."""
        if self._pending and (self._kind == "{" or not cut):
            yield from self._tell()
        if not self._told and not cut:
            self._told = True
            yield Arguments("{}")

    def _tell(self) -> Iterator[CallEvent]:
        text = "".join(self._pending)
        self._pending.clear()
        if self._kind == '"':
            inner = _read(text)
            text = inner if isinstance(inner, str) and isinstance(_read(inner), dict) else text
        elif text.strip() == "null":
            return
        if text:
            self._told = True
            yield Arguments(text)


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
