"""Write the one message of a generation, piece by piece, for APIs that have named events.

The same steps write a whole answer and a stream: a stream sends the events, a whole answer is what
they have built.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import msgspec

from engine.core.messages import CoreOutput
from engine.server.answering.generation import Generation
from engine.server.answering.passed import InnerRequest
from engine.server.http.errors import ApiError
from engine.server.http.sse import Direct, Framing, named_frame
from engine.text.messages.message_pieces import (
    ContentPiece,
    Piece,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallBegun,
)
from engine.text.request_text import SequenceText, TextDelta

NamedEvent = tuple[str, bytes]
"""Its name, and its JSON."""


class PieceAnswer:
    """Write the message that answers `inner`."""

    begins_at_once = False  # before the first token, of which some need a figure

    def __init__(self, generation: Generation, inner: InnerRequest):
        self.generation = generation
        self.inner = inner
        self.framing = Framing(named_frame, self.failed, b"")
        self.sequence: SequenceText = generation.requests[0].sequences[0]
        self.events: list[NamedEvent] = []  # not sent yet
        self._begun = False

    # ------------------------------------------------------------------- what each API does itself

    def begin(self) -> None:
        """Emit the first events."""
        raise NotImplementedError

    def take(self, piece: Piece) -> None:
        """Take the next piece of the message."""
        raise NotImplementedError

    def end(self) -> None:
        """End the message, and emit the last events."""
        raise NotImplementedError

    def failed(self, error: ApiError) -> list[NamedEvent]:
        """Return the events for a failure in the middle."""
        raise NotImplementedError

    def whole(self) -> dict[str, Any]:
        """Write the one body of an answer that isn't streamed."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------- what they share

    def emit(self, name: str, /, **fields: Any) -> None:
        """Add an event; its JSON says its name, too."""
        self.events.append((name, msgspec.json.encode({"type": name, **fields})))

    async def chunks(self, direct: Direct | None) -> AsyncIterator[list[NamedEvent]]:
        """Yield events as text comes; those of a step together.

        Where there is `direct`, most are given to it instead, where the engine's news arrive.
        """
        if self.begins_at_once:
            self._begun = True
            self.begin()
            yield self._unsent()
        async for deltas in self.generation.arrivals():
            self._take_all(deltas)
            if self.events:
                yield self._unsent()
            if direct is not None:
                await self.generation.flow(partial(self._pass_on, direct))

    def _pass_on(self, direct: Direct, outputs: list[CoreOutput]) -> bool:
        """Push the events of some outputs; return whether more may be pushed."""
        self._take_all(self.generation.deltas(outputs))
        return (not self.events or direct.push(self._unsent())) and not self.generation.finished

    def _take_all(self, deltas: Iterator[tuple[int, TextDelta]]) -> None:
        for _, delta in deltas:
            if not self._begun:
                self._begun = True
                self.begin()
            for piece in delta.message_pieces:
                self.take(piece)
            if delta.finish_reason is not None:
                self.end()

    def _unsent(self) -> list[NamedEvent]:
        sent, self.events = self.events, []
        return sent

    def build(self) -> None:
        """Build the whole message, once it is complete."""
        self.begin()
        message = self.sequence.message
        if message.reasoning:
            self.take(ReasoningPiece(message.reasoning))
        if message.content:
            self.take(ContentPiece(message.content))
        for place, call in enumerate(message.tool_calls):
            self.take(ToolCallBegun(place, call.id, call.name))
            self.take(ToolCallArguments(place, call.arguments))
        self.end()
        self.events.clear()
