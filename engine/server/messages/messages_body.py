"""Declare the bodies of POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.server.answering.passed import PassedFields
from engine.server.answering.protocol import Body, NullLeftOut
from engine.server.http.errors import ApiError, bad_request

Text = str | list[dict[str, Any]]
FEWEST_THINKING_TOKENS = 1_024


class ThinkingConfig(NullLeftOut):
    """Declare whether the model thinks before it answers."""

    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(NullLeftOut):
    """Declare a form of the answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(NullLeftOut):
    """Declare how hard the model tries, and the form of its answer."""

    model_config = ConfigDict(strict=True, extra="forbid")
    effort: str | None = None
    format: OutputFormat | None = None


class ToolUseChoice(NullLeftOut):
    """Declare whether the model calls tools, and which."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class AskedFields(BaseModel):
    """Declare the fields from which the prompt is made, in both bodies."""

    messages: list[dict[str, Any]]
    system: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolUseChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class CountTokensRequest(AskedFields, Body):
    """Declare the body of POST /v1/messages/count_tokens."""

    kind = "count_tokens"
    chat_template_kwargs: dict[str, Any] | None = None


class MessagesRequest(AskedFields, PassedFields):
    """Declare the body of POST /v1/messages."""

    kind = "messages"
    max_tokens: int
    stop_sequences: list[str] | None = None

    def check(self) -> list[str]:
        if (self.model_extra or {}).get("thread") is not None:
            # In exactly this form: Anthropic's tool runner then sends the whole conversation.
            raise ApiError(
                400,
                "thread is not supported by this server. Send the whole conversation.",
                "thread",
                details={"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
            )
        unknown = super().check()
        if self.max_tokens < 1:
            raise bad_request(
                f"max_tokens is {self.max_tokens}; it must be at least 1.", "max_tokens"
            )
        budget = self.thinking.budget_tokens if self.thinking is not None else None
        if budget is not None and budget < FEWEST_THINKING_TOKENS:
            raise bad_request(
                f"thinking.budget_tokens is {budget}; it must be at least"
                f" {FEWEST_THINKING_TOKENS:,}.",
                "thinking.budget_tokens",
            )
        return unknown
