"""Write a message as Anthropic's API does: blocks of thinking, text and calls, one by one."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import pydantic_core

from engine.server.answering.generation import Generation
from engine.server.answering.passed import InnerRequest
from engine.server.answering.piece_answer import NamedEvent, PieceAnswer
from engine.server.http.errors import ApiError
from engine.server.http.shapes import anthropic_failure
from engine.text.messages.message_pieces import ContentPiece, Piece, ReasoningPiece, ToolCallBegun

TEXT, THINKING, TOOL_USE = "text", "thinking", "tool_use"
_DELTAS = {
    TEXT: ("text_delta", "text"),
    THINKING: ("thinking_delta", "thinking"),
    TOOL_USE: ("input_json_delta", "partial_json"),
}
_EMPTY: dict[str, dict[str, Any]] = {
    TEXT: {"text": ""},
    THINKING: {"thinking": "", "signature": ""},
    TOOL_USE: {"input": {}},
}


class AnswerBlock:
    """Hold one block of the answer, as far as it is written."""

    def __init__(self, kind: str, **fields: Any):
        self.kind = kind
        self.fields = fields
        self.texts: list[str] = []

    def begun(self) -> dict[str, Any]:
        """Write the block as its first event has it."""
        return {"type": self.kind, **self.fields, **_EMPTY[self.kind]}

    def whole(self) -> dict[str, Any]:
        text = "".join(self.texts)
        if self.kind == TOOL_USE:
            return {"type": self.kind, **self.fields, "input": _input(text)}
        return {"type": self.kind, self.kind: text, **self.fields}


class MessagesAnswer(PieceAnswer):
    """Write the message, in one body or in events."""

    def __init__(self, generation: Generation, inner: InnerRequest, request_id: str):
        super().__init__(generation, inner)
        self.request_id = request_id  # of HTTP
        self.blocks: list[AnswerBlock] = []
        self.is_open = False  # the last block goes on
        self.calls_tools = False

    def begin(self) -> None:
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        self.emit("message_start", message={**self._head(), **empty, "usage": self._usage()})

    def take(self, piece: Piece) -> None:
        if isinstance(piece, ToolCallBegun):
            self._open(AnswerBlock(TOOL_USE, id=own_id(piece.id), name=piece.name))
            self.calls_tools = True
            return
        kind = TOOL_USE
        if isinstance(piece, ContentPiece):
            kind = TEXT
        elif isinstance(piece, ReasoningPiece):
            kind = THINKING
        if kind != TOOL_USE and not (self.is_open and self.blocks[-1].kind == kind):
            self._open(AnswerBlock(kind))
        self.blocks[-1].texts.append(piece.text)
        delta, field = _DELTAS[kind]
        self._emit_delta(type=delta, **{field: piece.text})

    def end(self) -> None:
        self._close()
        self.emit("message_delta", delta=self._end(), usage=self._usage())
        self.emit("message_stop")

    def failed(self, error: ApiError) -> list[NamedEvent]:
        told = anthropic_failure(error, self.request_id)
        return [("error", msgspec.json.encode(told))]

    def whole(self) -> dict[str, Any]:
        self.build()
        content = [block.whole() for block in self.blocks]
        return {**self._head(), "content": content, **self._end(), "usage": self._usage()}

    # ----------------------------------------------------------------------------------- its parts

    def _head(self) -> dict[str, Any]:
        model = self.generation.service.config.model_name
        return {"id": self.generation.id, "type": "message", "role": "assistant", "model": model}

    def _end(self) -> dict[str, Any]:
        reason, stop = self._stop_reason()
        return {"stop_reason": reason, "stop_sequence": stop}

    def _stop_reason(self) -> tuple[str | None, str | None]:
        sequence = self.sequence
        if sequence.finish_reason is None:
            return None, None
        if sequence.finish_reason == "length":
            asked = self.inner.token_limit
            is_asked = asked is not None and len(sequence.token_ids) >= asked
            return ("max_tokens" if is_asked else "model_context_window_exceeded"), None
        if isinstance(sequence.stop_reason, str):
            return "stop_sequence", sequence.stop_reason
        return ("tool_use" if self.calls_tools else "end_turn"), None

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        return {
            "input_tokens": usage.prompt_tokens - usage.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens or 0},
        }

    def _open(self, block: AnswerBlock) -> None:
        self._close()
        self.blocks.append(block)
        self.is_open = True
        place = len(self.blocks) - 1
        self.emit("content_block_start", index=place, content_block=block.begun())

    def _close(self) -> None:
        if not self.is_open:
            return
        self.is_open = False
        block = self.blocks[-1]
        if block.kind == THINKING:
            # Anthropic's own proves where the thoughts come from. Nothing is to be proved here, but
            # clients send it back and some want it to be there.
            block.fields["signature"] = secrets.token_urlsafe(16)
            self._emit_delta(type="signature_delta", signature=block.fields["signature"])
        self.emit("content_block_stop", index=len(self.blocks) - 1)

    def _emit_delta(self, **delta: Any) -> None:
        self.emit("content_block_delta", index=len(self.blocks) - 1, delta=delta)


def own_id(call_id: str) -> str:
    """Return the id of a call in the form of this API; a model's own form is kept."""
    own = call_id.removeprefix("call_")
    return call_id if own == call_id else f"toolu_{own}"


def _input(arguments: str) -> dict[str, Any]:
    """Read arguments as far as they are there: max_tokens may have cut them.

    Anthropic's client makes the same of the pieces of a stream.
    """
    try:
        read = pydantic_core.from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}
