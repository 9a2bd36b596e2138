"""RequestOutput: what `LLM.generate` and `LLM.chat` return, in the shape that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.text.output import Logprob, PositionLogprobs, RequestText

TokenLogprobs = dict[int, Logprob]
"""One position: token id → its log-probability, for the token itself and the most probable ones."""


@dataclass
class CompletionOutput:
    """One of a request's `n` answers."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # None unless logprobs were asked for
    logprobs: list[TokenLogprobs] | None  # one for each of token_ids
    finish_reason: str | None  # "stop", "length", or "error": see RequestOutput.error
    stop_reason: int | str | None  # the stop token id or stop string; None for end of sequence


@dataclass
class RequestOutput:
    """Everything that came of one prompt."""

    request_id: str
    prompt: str | None  # None if it was given as token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[TokenLogprobs | None] | None  # the first entry is None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    error: str = ""  # why an answer could not be completed


def request_output(text: RequestText) -> RequestOutput:
    """What `LLM` returns for a request, as far as it has come."""
    return RequestOutput(
        request_id=text.request_id,
        prompt=text.prompt,
        prompt_token_ids=text.prompt_token_ids,
        prompt_logprobs=None
        if text.prompt_logprobs is None
        else [None if position is None else _by_id(position) for position in text.prompt_logprobs],
        outputs=[
            CompletionOutput(
                index=sequence.index,
                text=sequence.text,
                token_ids=sequence.token_ids,
                cumulative_logprob=None
                if sequence.logprobs is None
                else sequence.cumulative_logprob,
                logprobs=None
                if sequence.logprobs is None
                else [_by_id(position) for position in sequence.logprobs],
                finish_reason=sequence.finish_reason,
                stop_reason=sequence.stop_reason,
            )
            for sequence in text.sequences
        ],
        finished=text.finished,
        num_cached_tokens=text.num_cached_tokens,
        error=text.error,
    )


def _by_id(position: PositionLogprobs) -> TokenLogprobs:
    """The drawn token first, then the most probable ones, best first."""
    return {entry.token_id: entry for entry in (position.chosen, *position.top)}
