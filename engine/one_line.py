"""Put errors of other libraries into one line of bounded length."""

from __future__ import annotations


def one_line(said: object, most: int = 200) -> str:
    """Return the text of an error with its white space joined, at most `most` characters."""
    return " ".join(str(said).split())[:most]
