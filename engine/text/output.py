"""Convert the core's token ids to text, for the server and for `LLM`.

    CoreOutput ──▶ detokenizer ──▶ stop strings ──▶ TextDelta (what is new) and RequestText (all)

The core knows no text, so a stop string ends a sequence only here: such a delta has
`finish_in_core` set, and the caller tells the core, `core.finish(request_id, index, stop_reason)`.
Later outputs of the core for an ended sequence are ignored.
"""

from __future__ import annotations

import msgspec

from engine.core.messages import CoreOutput, CoreRequest
from engine.text.messages.message_pieces import CallRead
from engine.text.messages.parser import MessageParser
from engine.text.messages.rules import MessageRules
from engine.text.request_text import RequestText, SequenceText, TextDelta
from engine.text.token_logprobs import PositionLogprobs, position_logprobs
from engine.text.tokenizer import Tokenizer
from engine.trace.events import StopMatched, TextEmitted, TextHeldBack, ToolCalled, ToolUnreadable
from engine.trace.recorder import Recorder


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
        new = [
            position_logprobs(self.tokenizer, entry, ranked)
            for entry in output.logprobs[:num_taken]
        ]
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
