"""Escape people's text, so that a console shows it and doesn't obey it.

A terminal obeys some characters: ESC begins a command, also in its C1 form; others change the
direction of the text after them. A prompt may contain any of them, so they are written as escapes.
"""

from __future__ import annotations

import re

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"  # control, line ends, half characters
    "\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f]"  # format
)
"""All of Unicode's control and format characters, except tab and newline, which the caller handles,
and the two joiners, which emoji and some scripts need."""


def printable(text: str) -> str:
    """Return `text` with a Python escape for each character that a console may obey."""
    return text if text.isprintable() else _OBEYED.sub(_python_escape, text)


def printable_json(text: str) -> str:
    """Return JSON with a JSON escape for each such character; its meaning stays the same."""
    return text if text.isprintable() else _OBEYED.sub(_json_escape, text)


def _python_escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4))
