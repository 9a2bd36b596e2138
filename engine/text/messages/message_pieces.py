"""Define the parts of an assistant's message, whole and as they come while it is written."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class ContentPiece(msgspec.Struct, frozen=True):
    """Hold new text for the user."""

    text: str


class ReasoningPiece(msgspec.Struct, frozen=True):
    """Hold new text of what the model thinks before it answers."""

    text: str


class ToolCallBegun(msgspec.Struct, frozen=True):
    """Say that the model calls a tool. Comes once for each call, before its arguments."""

    index: int  # which call of this message, from 0
    id: str
    name: str


class ToolCallArguments(msgspec.Struct, frozen=True):
    """Hold new text of a call's arguments, which are JSON as far as the model wrote it."""

    index: int
    text: str


Piece = ContentPiece | ReasoningPiece | ToolCallBegun | ToolCallArguments


def merged(pieces: list[Piece]) -> list[Piece]:
    """Join the text of pieces that follow one another and are of one kind."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, ContentPiece) and isinstance(last, ContentPiece):
            out[-1] = ContentPiece(last.text + piece.text)
        elif isinstance(piece, ReasoningPiece) and isinstance(last, ReasoningPiece):
            out[-1] = ReasoningPiece(last.text + piece.text)
        elif (
            isinstance(piece, ToolCallArguments)
            and isinstance(last, ToolCallArguments)
            and piece.index == last.index
        ):
            out[-1] = ToolCallArguments(piece.index, last.text + piece.text)
        else:
            out.append(piece)
    return out


class ToolCall(msgspec.Struct):
    """Hold one call of a tool."""

    id: str
    name: str
    arguments: str  # JSON, as far as the model wrote it


class AssistantMessage(msgspec.Struct):
    """Hold an assistant's message, as far as it is known."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = []


class CallRead(NamedTuple):
    """Report that a call was read to its end. call: which one, from 0."""

    call: int


class CallUnreadable(NamedTuple):
    """Report text that began like a call. num_chars: that are content; 0 if a call was told."""

    num_chars: int
    why: str


class MessageBuilder:
    """Join pieces to a message."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[ToolCallBegun, list[str]]] = []

    def add(self, piece: Piece) -> None:
        """Add the next piece."""
        if isinstance(piece, ContentPiece):
            self._content.append(piece.text)
        elif isinstance(piece, ReasoningPiece):
            self._reasoning.append(piece.text)
        elif isinstance(piece, ToolCallBegun):
            self._calls.append((piece, []))
        else:
            self._calls[piece.index][1].append(piece.text)

    def call(self, index: int) -> ToolCall:
        """Return a call, as far as it is known."""
        call, texts = self._calls[index]
        return ToolCall(id=call.id, name=call.name, arguments="".join(texts))

    @property
    def num_calls(self) -> int:
        return len(self._calls)

    @property
    def message(self) -> AssistantMessage:
        """Return the message so far."""
        return AssistantMessage(
            content="".join(self._content),
            reasoning="".join(self._reasoning),
            tool_calls=[self.call(index) for index in range(len(self._calls))],
        )
