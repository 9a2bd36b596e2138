"""Write messages and their pieces as OpenAI's chat completions have them."""

from __future__ import annotations

from typing import Any

from engine.text.messages.message_pieces import ContentPiece, Piece, ReasoningPiece, ToolCallBegun
from engine.text.request_text import SequenceText, TextDelta


def message_json(sequence: SequenceText) -> dict[str, Any]:
    """Write a whole message without its role."""
    if sequence.parser is None:
        return {"content": sequence.text}
    message = sequence.message
    # null only beside calls: clients read the content of any other answer as a text.
    written: dict[str, Any] = {"content": message.content or (None if message.tool_calls else "")}
    if message.reasoning:
        written.update(_reasoning(message.reasoning))
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return written


def delta_json(delta: TextDelta) -> list[dict[str, Any]]:
    """Write what is new of a message, one entry a chunk; at least one."""
    if delta.pieces is None:
        return [{"content": delta.text} if delta.text else {}]
    return [_piece(piece) for piece in delta.pieces] or [{}]


def finish_reason(sequence: SequenceText, choice: str) -> str | None:
    """Return why an answer ended. `choice`: what tool_choice asked for.

    An answer that the limit or a stop string cut isn't one that calls, whatever it began. A call
    that a name forced is said to "stop", as OpenAI does.
    """
    reason = sequence.finish_reason
    stopped = reason == "stop" and not isinstance(sequence.stop_reason, str)
    calls = sequence.parser is not None and sequence.parser.num_calls > 0
    return "tool_calls" if stopped and calls and choice != "named" else reason


def _piece(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, ContentPiece):
        return {"content": piece.text}
    if isinstance(piece, ReasoningPiece):
        return _reasoning(piece.text)
    if isinstance(piece, ToolCallBegun):
        function = {"name": piece.name, "arguments": ""}
        return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function",
                                "function": function}]}  # fmt: skip
    return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _reasoning(text: str) -> dict[str, Any]:
    """Write reasoning under both names that clients read."""
    return {"reasoning_content": text, "reasoning": text}
