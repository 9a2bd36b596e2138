"""Declare what reads the inside of calls, between the marks of a format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Began(NamedTuple):
    """Report that a call's name is known. id: None if the format has none."""

    name: str
    id: str | None = None


class Arguments(NamedTuple):
    """Report new text of the arguments of the call that began last, as JSON."""

    text: str


CallEvent = Began | Arguments


class CallBody(Protocol):
    """Read the text between two marks."""

    @property
    def broken(self) -> bool:
        """Return whether it isn't written as the format wants it."""

    @property
    def in_string(self) -> bool:
        """Return whether a mark written as text would stand within a string."""

    @property
    def unread(self) -> str:
        """Return the text that no call has been told of."""

    def feed(self, text: str) -> Iterator[CallEvent]:
        """Take new text; yield what is certain now. Never raises."""

    def end(self, cut: bool) -> Iterator[CallEvent]:
        """Yield the rest: the end mark has come, or the text has ended. cut: not by itself."""
