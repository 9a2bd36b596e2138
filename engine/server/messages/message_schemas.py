"""Declare the shapes of the answers of Anthropic's API, for /openapi.json and its test."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from engine.server.answering.answer_schemas import Schema


class AnthropicErrorDetail(Schema):
    type: str
    message: str
    details: dict[str, Any] | None = None


class AnthropicError(Schema):
    """Declare the shape of a failure of these routes."""

    type: Literal["error"]
    error: AnthropicErrorDetail
    request_id: str


class TokenCount(Schema):
    input_tokens: int


class ThinkingDetails(Schema):
    thinking_tokens: int


class MessageUsage(Schema):
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingDetails


class TextBlock(Schema):
    type: Literal["text"]
    text: str


class ThinkingBlock(Schema):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Schema):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class AnthropicMessage(Schema):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


# ------------------------------------------------------------------------------- events of a stream


class MessageStart(Schema):
    type: Literal["message_start"]
    message: AnthropicMessage


class BlockStart(Schema):
    type: Literal["content_block_start"]
    index: int
    content_block: TextBlock | ThinkingBlock | ToolUseBlock


class TextBlockDelta(Schema):
    type: Literal["text_delta"]
    text: str


class ThinkingBlockDelta(Schema):
    type: Literal["thinking_delta"]
    thinking: str


class SignatureBlockDelta(Schema):
    type: Literal["signature_delta"]
    signature: str


class InputJsonDelta(Schema):
    type: Literal["input_json_delta"]
    partial_json: str


class BlockDelta(Schema):
    type: Literal["content_block_delta"]
    index: int
    delta: TextBlockDelta | ThinkingBlockDelta | SignatureBlockDelta | InputJsonDelta


class BlockStop(Schema):
    type: Literal["content_block_stop"]
    index: int


class MessageEnd(Schema):
    stop_reason: StopReason | None
    stop_sequence: str | None


class MessageDelta(Schema):
    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(Schema):
    type: Literal["message_stop"]


class MessageEvent(
    RootModel[MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop]
):
    """Declare one event of a stream."""
