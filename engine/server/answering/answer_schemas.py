"""Declare the shapes of the answers, for /openapi.json. A test compares real answers with them.

Answers themselves are plain dicts, which are faster to write. A field without a default is always
present.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Declare a JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Schema):
    message: str
    type: str
    param: str | None
    code: int


class Error(Schema):
    """Declare the shape of every failure, whatever its status."""

    error: ErrorDetail


# ------------------------------------------------------------------------------------------ answers


class CachedTokens(Schema):
    cached_tokens: int


class CompletionDetails(Schema):
    reasoning_tokens: int


class Usage(Schema):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: CompletionDetails | None = None


class PromptLogprob(Schema):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each prompt token, by token id; nothing for the first."""


class CompletionLogprobs(Schema):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionPart(Schema):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    prompt_token_ids: list[int] | None
    token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionChoice(CompletionPart):
    prompt_logprobs: PromptLogprobs | None


class CompletionChunk(Schema):
    """Declare one event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionPart]
    usage: Usage | None = None


class Completion(CompletionChunk):
    choices: list[CompletionChoice]  # type: ignore[assignment]
    usage: Usage


class TopLogprob(Schema):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Schema):
    content: list[ChosenLogprob]


class CalledFunction(Schema):
    name: str
    arguments: str


class CalledTool(Schema):
    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(Schema):
    name: str | None = None
    arguments: str


class CallDelta(Schema):
    """Declare new text of a call; id, type and name come once."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Schema):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatPart(Schema):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Message(Schema):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[CalledTool] | None = None


class ChatChoice(Schema):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None


class ChatChunk(Schema):
    """Declare one event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatPart]
    usage: Usage | None = None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None


class ChatCompletion(Schema):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None


class Tokenized(Schema):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Schema):
    prompt: str


# --------------------------------------------------------------------------------------- the server


class ModelCard(Schema):
    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    created: int
    created_at: str
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(Schema):
    object: Literal["list"]
    data: list[ModelCard]
    has_more: bool
    first_id: str
    last_id: str
