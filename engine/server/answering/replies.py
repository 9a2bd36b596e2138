"""Declare the shapes of the answers, for /openapi.json. A test compares real answers with them.

Answers themselves are plain dicts, which are faster to write. A field without a default is always
present.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Declare a JSON object with these fields and no others."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: int


class Error(Reply):
    """Declare the shape of every failure, whatever its status."""

    error: ErrorDetail


# ------------------------------------------------------------------------------------------ answers


class CachedTokens(Reply):
    cached_tokens: int


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Candidate(Reply):
    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, Candidate] | None]
"""For each prompt token, by token id; nothing for the first."""


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionPart(Reply):
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


class CompletionChunk(Reply):
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


class TokenLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Reply):
    content: list[ChosenLogprob]


class Delta(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatPart(Reply):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class Message(Reply):
    role: Literal["assistant"]
    content: str


class ChatChoice(Reply):
    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | None


class ChatChunk(Reply):
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


class ChatCompletion(Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None


class Tokenized(Reply):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(Reply):
    prompt: str


# --------------------------------------------------------------------------------------- the server


class ModelCard(Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None


class ModelList(Reply):
    object: Literal["list"]
    data: list[ModelCard]
