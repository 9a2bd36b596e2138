"""Declare the bodies of POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from engine.server.answering.passed import PassedFields
from engine.server.answering.protocol import Body, NullLeftOut
from engine.server.http.errors import bad_request

LOGPROBS = "message.output_text.logprobs"


class ReasoningConfig(NullLeftOut):
    """Declare how long the model thinks, and in which form its thoughts are told."""

    model_config = ConfigDict(strict=True, extra="ignore")
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextConfig(NullLeftOut):
    """Declare the form of the text."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class StreamExtras(NullLeftOut):
    """Declare what a stream has beside its events."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_obfuscation: bool = False  # padding against eavesdroppers, which is never added


class InputFields(BaseModel):
    """Declare the fields from which the prompt is made, in both bodies."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None


class InputTokensRequest(InputFields, Body):
    """Declare the body of POST /v1/responses/input_tokens."""

    kind = "input_tokens"
    chat_template_kwargs: dict[str, Any] | None = None


class ResponsesRequest(InputFields, PassedFields):
    """Declare the body of POST /v1/responses."""

    kind = "responses"
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    store: bool = True
    metadata: dict[str, Any] | None = None
    stream_options: StreamExtras | None = None
    stop: str | list[str] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    def check(self) -> list[str]:
        unknown = super().check()
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise bad_request(
                f"max_output_tokens is {self.max_output_tokens}; it must be at least 1.",
                "max_output_tokens",
            )
        if self.top_logprobs and not self.wants_logprobs:
            raise bad_request(f'top_logprobs needs include: ["{LOGPROBS}"].', "top_logprobs")
        return unknown
