"""Declare the shapes of the answers of the Responses API, for /openapi.json and its test."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import RootModel

from engine.server.answering.answer_schemas import ChosenLogprob, Schema


class InputTokens(Schema):
    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(Schema):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(Schema):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Schema):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ChosenLogprob]


class ThoughtText(Schema):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class OutputMessage(Schema):
    id: str
    type: Literal["message"]
    status: Status
    role: Literal["assistant"]
    content: list[OutputText]


class OutputReasoning(Schema):
    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[ThoughtText]
    content: list[ThoughtText] | None = None


class OutputCall(Schema):
    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


Output = OutputMessage | OutputReasoning | OutputCall


class InputDetails(Schema):
    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Schema):
    reasoning_tokens: int


class ResponseUsage(Schema):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(Schema):
    reason: Literal["max_output_tokens"]


class ResponseFailure(Schema):
    code: str
    message: str


class ReasoningEcho(Schema):
    effort: str | None
    summary: str | None


class TextEcho(Schema):
    format: dict[str, Any]


class ResponseObject(Schema):
    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    background: Literal[False]
    error: ResponseFailure | None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    model: str
    output: list[Output]
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningEcho
    store: bool
    temperature: float
    text: TextEcho
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None


# ------------------------------------------------------------------------------- events of a stream


class Numbered(Schema):
    sequence_number: int


class LifeEvent(Numbered):
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseObject


class ItemEvent(Numbered):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: Output


class OfItem(Numbered):
    item_id: str
    output_index: int


class PartEvent(OfItem):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: int
    part: OutputText | ThoughtText


class SummaryPartEvent(OfItem):
    type: Literal["response.reasoning_summary_part.added", "response.reasoning_summary_part.done"]
    summary_index: int
    part: ThoughtText


class OutputTextDelta(OfItem):
    type: Literal["response.output_text.delta"]
    content_index: int
    delta: str
    logprobs: list[ChosenLogprob]


class OutputTextDone(OfItem):
    type: Literal["response.output_text.done"]
    content_index: int
    text: str
    logprobs: list[ChosenLogprob]


class ThoughtDelta(OfItem):
    type: Literal["response.reasoning_text.delta", "response.reasoning_summary_text.delta"]
    content_index: int | None = None
    summary_index: int | None = None
    delta: str


class ThoughtDone(OfItem):
    type: Literal["response.reasoning_text.done", "response.reasoning_summary_text.done"]
    content_index: int | None = None
    summary_index: int | None = None
    text: str


class ArgumentsDelta(OfItem):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(OfItem):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


class StreamFailure(Numbered):
    type: Literal["error"]
    code: str
    message: str
    param: str | None


class ResponseEvent(
    RootModel[
        LifeEvent
        | ItemEvent
        | PartEvent
        | SummaryPartEvent
        | OutputTextDelta
        | OutputTextDone
        | ThoughtDelta
        | ThoughtDone
        | ArgumentsDelta
        | ArgumentsDone
        | StreamFailure
    ]
):
    """Declare one event of a stream."""
