"""Hold the text of a request's outputs, as it grows: text, tokens, log-probabilities, messages."""

from __future__ import annotations

import msgspec

from engine.core.messages import CoreRequest, TokenLogprobs
from engine.sampling_params import SamplingParams
from engine.text.detokenizer import answer_detokenizer
from engine.text.messages.message_pieces import AssistantMessage, ContentPiece, Piece, merged
from engine.text.messages.parser import MessageParser
from engine.text.messages.rules import MessageRules
from engine.text.stop import StopMatcher
from engine.text.token_logprobs import PositionLogprobs, position_logprobs
from engine.text.tokenizer import Tokenizer


class TokenUsage(msgspec.Struct, kw_only=True):
    """Count the tokens of one request, for all its `n` outputs together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, found in the prefix cache
    reasoning_tokens: int | None = None  # of the completion; None: not told apart

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class SequenceText:
    """Hold one of a request's `n` outputs, as far as it is known."""

    __slots__ = (
        "candidates_ranked", "cumulative_logprob", "detokenizer", "finish_reason", "index",
        "logprobs", "only_text", "parser", "stop_reason", "stops", "texts", "token_ids",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        request: CoreRequest,
        tokenizer: Tokenizer,
        rules: MessageRules | None = None,
    ):
        params = request.params
        self.index = index
        self.parser: MessageParser | None = None  # None: all of the text is content
        if rules is not None:
            self.parser = rules.parser(tokenizer, request.prompt_token_ids, params)
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] | None = None if params.logprobs is None else []
        self.candidates_ranked = params.logprob_token_ids is None
        self.cumulative_logprob = 0.0  # of the drawn tokens; counted only with logprobs
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None  # token id or stop string
        self.detokenizer = answer_detokenizer(tokenizer, request.prompt_token_ids, params)
        self.stops = StopMatcher(params.stop or (), params.include_stop_str_in_output)
        # Whether a token that ends nothing is text, and nothing more is told of it.
        self.only_text = self.logprobs is None and self.parser is None and not params.stop
        self.texts: list[str] = []  # those sent so far, for one or more tokens each

    @property
    def text(self) -> str:
        """Return the text sent so far."""
        return "".join(self.texts)

    @property
    def message(self) -> AssistantMessage:
        """Return the text sent so far, taken apart."""
        return AssistantMessage(content=self.text) if self.parser is None else self.parser.message

    def add_token(self, token_id: int, params: SamplingParams, hidden: bool) -> str:
        """Book one token; return the text that may be sent. A `hidden` token is only counted."""
        self.token_ids.append(token_id)
        if hidden:
            return ""
        armed = len(self.token_ids) > params.min_tokens  # the core treats stop tokens alike
        return self._keep(self.stops.feed(self.detokenizer.feed(token_id), armed))

    def add_text(self, token_id: int) -> str:
        """Do what `add_token` does, where there are no stop strings and the token is shown."""
        self.token_ids.append(token_id)
        text = self.detokenizer.feed(token_id)
        if text:
            self.texts.append(text)
        return text

    def end(self) -> str:
        """Return what was held back, because no more tokens come. It may complete a stop string."""
        rest = self.stops.feed(self.detokenizer.flush())
        return self._keep(rest if self.stops.matched is not None else rest + self.stops.flush())

    def _keep(self, text: str) -> str:
        if text:
            self.texts.append(text)
        return text


class RequestText:
    """Hold one request: its prompt, and its outputs so far."""

    def __init__(
        self,
        request: CoreRequest,
        prompt: str | None,
        tokenizer: Tokenizer,
        rules: MessageRules | None = None,
    ):
        self.request_id = request.request_id
        self.params = request.params
        self.prompt = prompt  # None if it was given as token ids
        self.prompt_token_ids = request.prompt_token_ids
        self.prompt_entries: list[TokenLogprobs | None] | None = None  # as the core sent them
        self.sequences = [
            SequenceText(i, request, tokenizer, rules) for i in range(request.params.n)
        ]
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.queued_ns = 0
        self.arrival_ns = request.arrival_ns  # CLOCK_MONOTONIC, like the following
        self.first_scheduled_ns = 0
        self.first_token_ns = 0  # set by the taker of the core's outputs, if wanted
        self.last_token_ns = 0
        self.error = ""
        self.forced = rules is not None and rules.must_call  # a call of a tool
        self._tokenizer = tokenizer
        self._prompt_logprobs: list[PositionLogprobs | None] | None = None

    @property
    def prompt_logprobs(self) -> list[PositionLogprobs | None] | None:
        """Return the log-probabilities of the prompt, once they are there; the first is None.

        Those of a long prompt take a second: a server makes them off its event loop.
        """
        if self._prompt_logprobs is None and self.prompt_entries is not None:
            self._prompt_logprobs = [
                None if entry is None else position_logprobs(self._tokenizer, entry)
                for entry in self.prompt_entries
            ]
        return self._prompt_logprobs

    @property
    def num_logprobs(self) -> int:
        """Count the log-probabilities that are there, candidates included."""
        params = self.params
        of_prompt = len(self.prompt_entries or ()) * ((params.prompt_logprobs or 0) + 1)
        tokens = sum(len(sequence.logprobs or ()) for sequence in self.sequences)
        return of_prompt + tokens * ((params.logprobs or 0) + 1)

    @property
    def finished(self) -> bool:
        return all(sequence.finish_reason is not None for sequence in self.sequences)

    def end(self, reason: str) -> None:
        """End the sequences that are not complete, for this reason."""
        for sequence in self.sequences:
            sequence.finish_reason = sequence.finish_reason or reason

    @property
    def usage(self) -> TokenUsage:
        return TokenUsage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=sum(len(sequence.token_ids) for sequence in self.sequences),
            cached_tokens=self.num_cached_tokens,
            reasoning_tokens=self._num_reasoning_tokens,
        )

    @property
    def _num_reasoning_tokens(self) -> int | None:
        parsers = [sequence.parser for sequence in self.sequences if sequence.parser is not None]
        return sum(parser.num_reasoning_tokens for parser in parsers) if parsers else None


class TextDelta(msgspec.Struct, kw_only=True):
    """Hold what one `CoreOutput` added to one sequence.

    `text` may be empty while a character or a stop string is incomplete; the tokens and their
    log-probabilities are reported immediately.
    """

    request: RequestText
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    has_prompt_logprobs: bool = False  # request.prompt_logprobs came with this one
    finish_reason: str | None = None  # "stop", "length", "abort", "error"; set exactly once
    stop_reason: int | str | None = None
    finish_in_core: bool = False  # a stop string matched: end the sequence in the core
    pieces: list[Piece] | None = None  # of the message; None: all of the text is content

    @property
    def message_pieces(self) -> list[Piece]:
        """Return what is new of the message."""
        if self.pieces is not None:
            return self.pieces
        return [ContentPiece(self.text)] if self.text else []

    def join(self, earlier: TextDelta) -> None:
        """Put what came before it in front. Nothing had ended by then."""
        self.text = earlier.text + self.text
        self.token_ids = earlier.token_ids + self.token_ids
        if self.logprobs is not None or earlier.logprobs is not None:
            self.logprobs = [*(earlier.logprobs or ()), *(self.logprobs or ())]
        if self.pieces is not None or earlier.pieces is not None:
            self.pieces = merged(earlier.message_pieces + self.message_pieces)
        self.has_prompt_logprobs |= earlier.has_prompt_logprobs
