"""Convert the core's token ids to text, for the server and for `LLM`.

    CoreOutput ──▶ detokenizer ──▶ stop strings ──▶ TextDelta (what is new) and RequestText (all)

The core knows no text, so a stop string ends a sequence only here: such a delta has
`finish_in_core` set, and the caller tells the core, `core.finish(request_id, index, stop_reason)`.
Later outputs of the core for an ended sequence are ignored.
"""

from __future__ import annotations

import msgspec

from engine.core.messages import CoreOutput, CoreRequest, TokenLogprobs
from engine.sampling_params import SamplingParams
from engine.text.detokenizer import answer_detokenizer
from engine.text.messages.message_pieces import (
    AssistantMessage,
    CallRead,
    ContentPiece,
    Piece,
    merged,
)
from engine.text.messages.parser import MessageParser
from engine.text.messages.rules import MessageRules
from engine.text.stop import StopMatcher
from engine.text.tokenizer import Tokenizer
from engine.trace.events import StopMatched, TextEmitted, TextHeldBack, ToolCalled, ToolUnreadable
from engine.trace.recorder import Recorder

MANY_LOGPROBS = 1_000
"""Log-probabilities that are converted and written in about a millisecond."""


class Logprob(msgspec.Struct, kw_only=True):
    """Hold one token at one position, as the model itself rated it (before temperature and the
    rest)."""

    token_id: int
    logprob: float  # natural logarithm
    rank: int | None  # 1 = the most probable; None: not counted, of logprob_token_ids
    decoded_token: str
    bytes: bytes


class PositionLogprobs(msgspec.Struct):
    """Hold the token at a position, and its candidates.

    Candidates are the most probable tokens, best first, or those of logprob_token_ids.
    """

    chosen: Logprob
    top: list[Logprob]


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
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Return the text sent so far."""
        return "".join(self._pieces)

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
            self._pieces.append(text)
        return text

    def end(self) -> str:
        """Return what was held back, because no more tokens come. It may complete a stop string."""
        rest = self.stops.feed(self.detokenizer.flush())
        return self._keep(rest if self.stops.matched is not None else rest + self.stops.flush())

    def _keep(self, text: str) -> str:
        if text:
            self._pieces.append(text)
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
                None if entry is None else _position(self._tokenizer, entry)
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


class OutputProcessor:
    """Make text of the core's outputs.

    The state of a request is in the `RequestText` that its caller holds.
    """

    def __init__(self, tokenizer: Tokenizer, recorder: Recorder):
        self.tokenizer = tokenizer
        self.recorder = recorder

    def begin(
        self, request: CoreRequest, prompt: str | None = None, rules: MessageRules | None = None
    ) -> RequestText:
        """Make the text of a request. It grows as outputs are processed.

        `rules`: how its answers are taken apart; None if they are plain text.
        """
        return RequestText(request, prompt, self.tokenizer, rules)

    def process(self, request: RequestText, output: CoreOutput) -> TextDelta | None:
        """Take one output of the core. Return None if its sequence has ended."""
        sequence = request.sequences[output.index]
        if sequence.finish_reason is not None:
            return None
        if (
            output.first_scheduled_ns
            or output.num_cached_tokens > request.num_cached_tokens
            or output.num_preemptions > request.num_preemptions
            or output.error
        ):
            self._book_request(request, output)
        if sequence.only_text and output.finish_reason is None and len(output.token_ids) == 1:
            delta = TextDelta(
                request=request,
                index=output.index,
                text=sequence.add_text(output.token_ids[0]),
                token_ids=output.token_ids,
                logprobs=None,
            )
        else:
            delta = self._add_tokens(request, sequence, output)
        if output.prompt_logprobs is not None:
            request.prompt_entries = output.prompt_logprobs
            delta.has_prompt_logprobs = True
        if self.recorder.wants_full(request.request_id):
            self._record_text(request, sequence, delta)
        return delta

    # ------------------------------------------------------------------------------ details

    def _book_request(self, request: RequestText, output: CoreOutput) -> None:
        request.num_cached_tokens = max(request.num_cached_tokens, output.num_cached_tokens)
        request.num_preemptions = max(request.num_preemptions, output.num_preemptions)
        request.queued_ns = request.queued_ns or output.queued_ns
        request.first_scheduled_ns = request.first_scheduled_ns or output.first_scheduled_ns
        request.error = request.error or output.error

    def _add_tokens(
        self, request: RequestText, sequence: SequenceText, output: CoreOutput
    ) -> TextDelta:
        if sequence.parser is not None and len(output.token_ids) > 1:
            return self._add_one_by_one(request, sequence, output)
        params = request.params
        # The token that ended the text (end of sequence, or one of stop_token_ids) isn't part of
        # it.
        ends_text = output.finish_reason == "stop" and not output.keeps_last
        hides_last = ends_text and not params.include_stop_str_in_output
        last = len(output.token_ids) - 1
        text = ""
        num_taken = 0
        for place, token_id in enumerate(output.token_ids):
            text += sequence.add_token(token_id, params, hidden=hides_last and place == last)
            num_taken += 1
            if sequence.stops.matched is not None:
                break
        if output.finish_reason is not None and sequence.stops.matched is None:
            text += sequence.end()
        delta = TextDelta(
            request=request,
            index=sequence.index,
            text=text,
            token_ids=output.token_ids[:num_taken],
            logprobs=self._add_logprobs(sequence, output, num_taken),
        )
        if sequence.stops.matched is not None:
            self._stop_matched(request, sequence, output, delta)
        else:
            delta.finish_reason = sequence.finish_reason = output.finish_reason
            delta.stop_reason = sequence.stop_reason = output.stop_reason
        if sequence.parser is not None:
            self._parse(request, sequence, sequence.parser, delta)
        return delta

    def _add_one_by_one(
        self, request: RequestText, sequence: SequenceText, output: CoreOutput
    ) -> TextDelta:
        """Add several tokens as if each had come alone: a message may end behind any of them."""
        delta = None
        for place, token_id in enumerate(output.token_ids):
            part = CoreOutput(request_id=output.request_id, index=output.index)
            if place == len(output.token_ids) - 1:
                part = msgspec.structs.replace(output)
            part.token_ids = [token_id]
            part.logprobs = output.logprobs and output.logprobs[place : place + 1]
            earlier, delta = delta, self._add_tokens(request, sequence, part)
            if earlier is not None:
                delta.join(earlier)
            if delta.finish_reason is not None:
                break
        assert delta is not None
        delta.finish_in_core &= output.finish_reason is None
        return delta

    def _parse(
        self,
        request: RequestText,
        sequence: SequenceText,
        parser: MessageParser,
        delta: TextDelta,
    ) -> None:
        """Take new text apart. The text ends behind the one call that may come."""
        delta.pieces = parser.feed(delta.text, delta.token_ids)
        if delta.finish_reason is None and parser.is_complete:
            delta.finish_reason = sequence.finish_reason = "stop"
            delta.finish_in_core = True
        if delta.finish_reason is not None:
            delta.pieces += parser.end(delta.finish_reason)
        if parser.noted:
            self._record_calls(request, sequence.index, parser)

    def _record_calls(self, request: RequestText, index: int, parser: MessageParser) -> None:
        request_id = request.request_id
        for noted in parser.noted:
            event: ToolCalled | ToolUnreadable
            if isinstance(noted, CallRead):
                call = parser.call(noted.call)
                event = ToolCalled(
                    request_id=request_id,
                    index=index,
                    call=noted.call,
                    tool=call.name,
                    num_chars=len(call.arguments),
                    forced=request.forced,
                )
            else:
                event = ToolUnreadable(
                    request_id=request_id, index=index, num_chars=noted.num_chars, why=noted.why
                )
            self.recorder.record(event)
        parser.noted.clear()

    def _stop_matched(
        self, request: RequestText, sequence: SequenceText, output: CoreOutput, delta: TextDelta
    ) -> None:
        stop = sequence.stops.matched or ""
        delta.finish_reason = sequence.finish_reason = "stop"
        delta.stop_reason = sequence.stop_reason = stop
        delta.finish_in_core = output.finish_reason is None  # otherwise this token ended it
        self.recorder.record(
            StopMatched(
                request_id=request.request_id,
                index=sequence.index,
                stop=stop,
                num_output_tokens=len(sequence.token_ids),
            )
        )

    def _add_logprobs(
        self, sequence: SequenceText, output: CoreOutput, num_taken: int
    ) -> list[PositionLogprobs] | None:
        if sequence.logprobs is None or output.logprobs is None:
            return None
        ranked = sequence.candidates_ranked
        new = [_position(self.tokenizer, entry, ranked) for entry in output.logprobs[:num_taken]]
        sequence.logprobs.extend(new)
        sequence.cumulative_logprob += sum(position.chosen.logprob for position in new)
        return new

    def _record_text(self, request: RequestText, sequence: SequenceText, delta: TextDelta) -> None:
        request_id, index = request.request_id, sequence.index
        if delta.text:
            self.recorder.record(
                TextEmitted(
                    request_id=request_id,
                    index=index,
                    text=delta.text,
                    num_tokens=len(delta.token_ids),
                )
            )
        if sequence.finish_reason is not None:
            return
        if sequence.stops.num_held:
            self._record_held(
                request_id, index, sequence.stops.num_held, "it may be the start of a stop string"
            )
        if sequence.detokenizer.holds_back:
            self._record_held(request_id, index, 1, "a character is not complete yet")

    def _record_held(self, request_id: str, index: int, num_chars: int, why: str) -> None:
        self.recorder.record(
            TextHeldBack(request_id=request_id, index=index, num_chars=num_chars, why=why)
        )


def _position(tokenizer: Tokenizer, entry: TokenLogprobs, ranked: bool = True) -> PositionLogprobs:
    """Convert the core's log-probabilities. `ranked`: candidates are the most probable, best
    first."""
    tops = enumerate(zip(entry.top_ids, entry.top_logprobs), start=1)
    return PositionLogprobs(
        chosen=_logprob(tokenizer, entry.token_id, entry.logprob, entry.rank),
        top=[_logprob(tokenizer, i, value, rank if ranked else None) for rank, (i, value) in tops],
    )


def _logprob(tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None) -> Logprob:
    token = tokenizer.token(token_id)
    return Logprob(
        token_id=token_id,
        logprob=logprob,
        rank=rank,
        decoded_token=token.text,
        bytes=token.bytes,
    )
