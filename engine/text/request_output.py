"""Define what `LLM.generate` and `LLM.chat` return, in the shape that vLLM's users know."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from engine.text.request_text import RequestText
from engine.text.token_logprobs import Logprob, PositionLogprobs

LogprobsOnePosition = dict[int, Logprob]
"""One position: token id → its log-probability, for the token itself and the most probable ones."""


@dataclass
class RequestMetrics:
    """Hold the times of a request. Times named `_ts` are of `time.monotonic()`."""

    arrival_time: float  # of time.time()
    queued_ts: float
    scheduled_ts: float  # of planning its first step; 0: not yet
    first_token_ts: float  # 0: not yet
    last_token_ts: float
    num_generation_tokens: int
    num_preemptions: int

    @property
    def time_in_queue(self) -> float:
        """Return the seconds before its first step was planned."""
        return max(0.0, self.scheduled_ts - self.queued_ts) if self.scheduled_ts else 0.0

    @property
    def first_token_latency(self) -> float:
        """Return the seconds from its arrival to its first token."""
        return max(0.0, self.first_token_ts - self.queued_ts) if self.first_token_ts else 0.0


@dataclass
class CompletionOutput:
    """Hold one of a request's `n` answers."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # None unless logprobs were asked for
    logprobs: list[LogprobsOnePosition] | None  # one for each of token_ids
    finish_reason: str | None  # "stop", "length", "abort", or "error": see RequestOutput.error
    stop_reason: int | str | None  # the stop token id or stop string; None for end of sequence

    def finished(self) -> bool:
        """Return whether this answer is complete."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """Hold the prompt and the answers of one request."""

    request_id: str
    prompt: str | None  # None if it was given as token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsOnePosition | None] | None  # the first entry is None
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = True
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    error: str = ""  # why an answer could not be completed
    metrics: RequestMetrics | None = None


def request_output(text: RequestText) -> RequestOutput:
    """Make the output of `LLM` for a request, as far as it is known."""
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
                token_ids=list(sequence.token_ids),
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
        metrics=_metrics(text),
    )


def _metrics(text: RequestText) -> RequestMetrics:
    ago_s = (time.monotonic_ns() - text.arrival_ns) / 1e9
    return RequestMetrics(
        arrival_time=time.time() - ago_s,
        queued_ts=text.arrival_ns / 1e9,
        scheduled_ts=text.first_scheduled_ns / 1e9,
        first_token_ts=text.first_token_ns / 1e9,
        last_token_ts=text.last_token_ns / 1e9,
        num_generation_tokens=text.usage.completion_tokens,
        num_preemptions=text.num_preemptions,
    )


def _by_id(position: PositionLogprobs) -> LogprobsOnePosition:
    """Return log-probabilities by id: the drawn token first, then the candidates in their order."""
    by_id = {position.chosen.token_id: position.chosen}
    for entry in position.top:
        by_id.setdefault(entry.token_id, entry)
    return by_id
