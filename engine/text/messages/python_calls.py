"""Read calls that are written as Python: [weather(city='Oslo'), clock()].

Only literals are values, and nothing is ever evaluated. A call is told when it is complete.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Container, Iterator
from typing import Any

from engine.text.messages.call_body import Arguments, Began, CallEvent

_LONGEST = 65_536  # characters of one call
_CONSTANTS = {"true": True, "false": False, "null": None}
_OPEN, _CLOSE = "([{", ")]}"


class PythonCalls:
    """Read calls that are Python. `known`: the names that a call may have."""

    def __init__(self, known: Container[str] | None = None):
        self.broken = False
        self._known = known
        self._written = ""  # of the call so far
        self._source = ""  # the same as Python
        self._opening = ""  # before the first call
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self._told = False
        self._listed = False
        self._ended = False

    @property
    def in_string(self) -> bool:
        return bool(self._quote)

    @property
    def unread(self) -> str:
        return self._opening + self._written

    def feed(self, text: str) -> Iterator[CallEvent]:
        for place, character in enumerate(text):
            if self.broken:
                self._written += text[place:]
                return
            if not self._written and not self._depth and self._between(character):
                self._opening += character if not self._told else ""
                continue
            self._written += character
            # Models write lines into strings as they are, which Python doesn't allow.
            self._source += "\\n" if self._quote and character == "\n" else character
            if len(self._written) > _LONGEST:
                self.broken = True
            elif self._closes(character):
                yield from self._call()

    def end(self, cut: bool) -> Iterator[CallEvent]:
        self.broken |= bool(self._written.strip()) or (self._listed and not self._ended)
        yield from ()

    def _between(self, character: str) -> bool:
        """Return whether a character only separates calls."""
        if character == "[" and not self._listed:
            self._listed = True
            return True
        if character == "]" and self._listed:
            self._ended = True
            return True
        return character in " \t\r\n,;"

    def _closes(self, character: str) -> bool:
        """Follow strings and brackets; return whether a call is complete."""
        if self._escaped:
            self._escaped = False
        elif self._quote:
            self._escaped = character == "\\"
            self._quote = "" if character == self._quote else self._quote
        elif character in "'\"":
            self._quote = character
        elif character in _OPEN:
            self._depth += 1
        elif character in _CLOSE:
            self._depth -= 1
            if self._depth < 0:
                self.broken = True
            return self._depth == 0
        return False

    def _call(self) -> Iterator[CallEvent]:
        try:
            name, arguments = _read(self._source)
            written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            self.broken = True
            return
        if self._known is not None and name not in self._known:
            self.broken = True
            return
        self._written = self._source = self._opening = ""
        self._told = True
        yield Began(name)
        yield Arguments(written)


def _read(text: str) -> tuple[str, dict[str, Any]]:
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("not a call with named arguments")
    arguments = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError("not a name")
        arguments[keyword.arg] = _value(keyword.value)
    return ast.unparse(call.func), arguments


def _value(node: ast.expr) -> Any:
    """Read a literal of Python or JSON."""
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {str(_key(key)): _value(value) for key, value in zip(node.keys, node.values)}
    return ast.literal_eval(node)


def _key(node: ast.expr | None) -> Any:
    if node is None:  # another object's entries: **this
        raise ValueError("not a literal")
    return ast.literal_eval(node)
