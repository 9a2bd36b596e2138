"""Replace half characters: surrogates without their other half, which have no UTF-8."""

from __future__ import annotations

import re

HALF = re.compile("[\ud800-\udfff]")
AT_ONCE = 65_536  # characters: while they are mended no other thread runs


def mended(text: str) -> str:
    """Return `text` with U+FFFD in place of each half character."""
    if text.isascii():
        return text
    starts = range(0, len(text), AT_ONCE)
    return "".join(HALF.sub("\ufffd", text[start : start + AT_ONCE]) for start in starts)
