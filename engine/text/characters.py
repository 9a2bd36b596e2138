"""Replace half characters: surrogates without their other half, which have no UTF-8."""

from __future__ import annotations

import re

HALF = re.compile("[\ud800-\udfff]")


def mended(text: str) -> str:
    """Return `text` with U+FFFD in place of each half character."""
    return text if text.isascii() else HALF.sub("\ufffd", text)
