from __future__ import annotations

import pytest

from engine.core.messages import CoreOutput, CoreRequest, TokenLogprobs
from engine.sampling_params import SamplingParams
from engine.text.messages.formats import CALL_FORMATS
from engine.text.messages.message_pieces import (
    ContentPiece,
    ReasoningPiece,
    ToolCallArguments,
    ToolCallBegun,
)
from engine.text.messages.rules import MessageRules
from engine.text.output import OutputProcessor
from engine.text.request_text import TextDelta
from engine.trace.events import StopMatched, TextEmitted, TextHeldBack
from engine.trace.recorder import Recorder

TEXT = "Hello, world! It's a café 😀 stop here"


class OneRequest(OutputProcessor):
    """Processes the outputs of the request that was begun last."""

    def begin(self, request, prompt=None, rules=None):
        self.request = super().begin(request, prompt, rules)
        return self.request

    def process(self, output):
        return super().process(self.request, output)


@pytest.fixture
def processor(byte_level, recorder):
    return OneRequest(byte_level, recorder)


def start(processor, rules=None, **params):
    prompt = processor.tokenizer.encode("hello", add_special_tokens=False)
    request = CoreRequest(
        request_id="r",
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        eos_token_ids=[2],
    )
    return processor.begin(request, "hello", rules)


def feed(processor, ids, index=0, **last):
    """One token at a time, as the core does; `last` describes the end."""
    deltas = []
    for place, token_id in enumerate(ids):
        end = last if place == len(ids) - 1 else {}
        output = CoreOutput(request_id="r", index=index, token_ids=[token_id], **end)
        deltas.append(processor.process(output))
    return deltas


def ids_of(processor, text):
    return processor.tokenizer.encode(text, add_special_tokens=False)


def test_deltas_make_the_text(processor):
    request = start(processor, max_tokens=100)
    ids = ids_of(processor, TEXT)
    deltas = feed(processor, ids, finish_reason="length")
    assert "".join(delta.text for delta in deltas) == TEXT == request.sequences[0].text
    assert [delta.finish_reason for delta in deltas] == [None] * (len(ids) - 1) + ["length"]
    assert request.finished
    assert request.usage.prompt_tokens == len(request.prompt_token_ids)
    assert request.usage.completion_tokens == len(ids)
    assert request.usage.total_tokens == len(request.prompt_token_ids) + len(ids)


def test_end_of_sequence_is_counted_and_not_shown(processor):
    request = start(processor, skip_special_tokens=False)
    deltas = feed(processor, [*ids_of(processor, "one"), 2], finish_reason="stop")
    assert request.sequences[0].text == "one"
    assert request.sequences[0].token_ids[-1] == 2
    assert deltas[-1].finish_reason == "stop" and deltas[-1].stop_reason is None
    assert deltas[-1].finish_in_core is False


@pytest.mark.parametrize(("include", "text"), [(False, "one"), (True, "one two")])
def test_a_stop_token_that_is_a_word(processor, include, text):
    ids = ids_of(processor, "one two")
    cut = len(ids_of(processor, "one"))
    request = start(processor, stop_token_ids=[ids[-1]], include_stop_str_in_output=include)
    if len(ids) > cut + 1:  # "two" in several tokens: the last of them is the stop token
        text = processor.tokenizer.decode(ids if include else ids[:-1])
    deltas = feed(processor, ids, finish_reason="stop", stop_reason=ids[-1])
    assert request.sequences[0].text == text
    assert deltas[-1].stop_reason == ids[-1]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_sequence_in_the_core(processor, recorder, include):
    seen = []
    recorder.subscribe(seen.extend)
    request = start(processor, stop=["world", "café"], include_stop_str_in_output=include)
    ids = ids_of(processor, TEXT)
    deltas = feed(processor, ids)
    last = next(delta for delta in deltas if delta.finish_reason)
    place = deltas.index(last)
    assert last.finish_in_core and last.stop_reason == "world" and last.finish_reason == "stop"
    assert request.sequences[0].text == ("Hello, world" if include else "Hello, ")
    assert deltas[place + 1 :] == [None] * (len(ids) - place - 1)  # what comes late is ignored
    assert request.sequences[0].token_ids == ids[: place + 1]
    assert request.usage.completion_tokens == place + 1
    recorder.flush()
    (stopped,) = [event for event in seen if isinstance(event, StopMatched)]
    assert (stopped.stop, stopped.num_output_tokens) == ("world", place + 1)


def test_several_tokens_in_one_output(processor):
    """Tokens after the stop string, in the same output, are not counted."""
    request = start(processor, stop=["world"], logprobs=0)
    ids = ids_of(processor, TEXT)
    entries = [TokenLogprobs(i, -1.0, 1, [], []) for i in ids]
    delta = processor.process(CoreOutput(request_id="r", token_ids=ids, logprobs=entries))
    assert delta.text == "Hello, " and delta.finish_in_core
    assert len(delta.token_ids) < len(ids)
    assert len(delta.logprobs) == len(delta.token_ids) == len(request.sequences[0].logprobs)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_a_message_ends_behind_its_one_call_however_many_tokens_come_together(processor, size):
    """What was proposed behind it isn't counted, and the core's own end is later."""
    rules = MessageRules(calls=CALL_FORMATS["hermes"], one_call=True)
    request = start(processor, rules, logprobs=0)
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    ids = ids_of(processor, f"So: {call} and more, and more")
    deltas = []
    for first in range(0, len(ids), size):
        some = ids[first : first + size]
        output = CoreOutput(
            request_id="r",
            token_ids=some,
            logprobs=[TokenLogprobs(i, -1.0, 1, [], []) for i in some],
            finish_reason="length" if first + size >= len(ids) else None,
        )
        deltas += [delta for delta in [processor.process(output)] if delta is not None]
    (sequence,) = request.sequences
    taken = next(
        n for n in range(len(ids)) if "</tool_call>" in processor.tokenizer.decode(ids[:n])
    )
    told = [token_id for delta in deltas for token_id in delta.token_ids]
    assert sequence.token_ids == told == ids[:taken]
    assert len(sequence.logprobs) == sum(len(delta.logprobs) for delta in deltas) == taken
    assert sequence.finish_reason == deltas[-1].finish_reason == "stop"
    assert deltas[-1].finish_in_core is (size < 1000)
    assert sequence.message.content.strip() == "So:" and len(sequence.message.tool_calls) == 1


def test_a_stop_string_and_length_at_once(processor):
    """The core has already ended the sequence with the token that completes the stop string."""
    request = start(processor, stop=["world"])
    ids = ids_of(processor, "Hello, world")
    deltas = feed(processor, ids, finish_reason="length")
    assert deltas[-1].finish_reason == "stop" and deltas[-1].stop_reason == "world"
    assert deltas[-1].finish_in_core is False
    assert request.sequences[0].text == "Hello, "


def test_what_was_held_goes_out_at_the_end(processor):
    request = start(processor, stop=["stop here!"])
    deltas = feed(processor, ids_of(processor, TEXT), finish_reason="length")
    assert "stop" not in "".join(delta.text for delta in deltas[:-1])
    assert deltas[-1].text.endswith("stop here")
    assert request.sequences[0].text == TEXT


def test_a_stop_string_within_the_first_min_tokens_does_not_count(processor):
    """As for stop tokens in the core: token number min_tokens doesn't end a text."""
    ids = ids_of(processor, "a stop, a stop, and on")
    first = next(k for k in range(len(ids)) if "stop" in processor.tokenizer.decode(ids[: k + 1]))
    complete = first + 1  # tokens, when the first "stop" is complete
    request = start(processor, stop=["stop"], min_tokens=complete, max_tokens=100)
    feed(processor, ids)
    assert request.sequences[0].text == "a stop, a "
    request = start(processor, stop=["stop"], min_tokens=complete - 1, max_tokens=100)
    feed(processor, ids)
    assert request.sequences[0].text == "a "


def test_half_a_character_at_the_very_end_may_complete_no_stop_but_is_shown(processor):
    table = processor.tokenizer.token_bytes
    of_byte = {table.bytes_of(i): i for i in range(3, 259)}
    request = start(processor, stop=["x\ufffd"])
    deltas = feed(processor, [of_byte[b"x"], of_byte[b"\xc3"]], finish_reason="length")
    assert deltas[0].text == ""
    assert deltas[-1].finish_reason == "stop"  # U+FFFD, as the text shows it, completes it
    assert request.sequences[0].text == ""


def test_siblings_are_kept_apart(processor):
    request = start(processor, n=2, stop=["world"], temperature=1.0)
    ids = ids_of(processor, TEXT)
    for token_id in ids:
        processor.process(CoreOutput(request_id="r", index=0, token_ids=[token_id]))
    assert request.sequences[0].finish_reason == "stop" and not request.finished
    last = feed(processor, ids_of(processor, "other"), index=1, finish_reason="length")[-1]
    assert (last.index, last.finish_reason) == (1, "length")
    assert [s.text for s in request.sequences] == ["Hello, ", "other"]
    assert request.finished
    assert request.usage.completion_tokens == sum(len(s.token_ids) for s in request.sequences)


def test_logprobs_have_strings_and_bytes(processor):
    request = start(processor, logprobs=2, prompt_logprobs=1)
    table = processor.tokenizer.token_bytes
    half = next(i for i in range(3, 259) if table.bytes_of(i) == b"\xe2")
    entry = TokenLogprobs(half, -2.5, 3, [5, half], [-0.5, -2.0])
    delta = processor.process(
        CoreOutput(
            request_id="r",
            token_ids=[half],
            logprobs=[entry],
            prompt_logprobs=[None, TokenLogprobs(5, -1.0, 1, [5], [-1.0])],
        )
    )
    (position,) = delta.logprobs
    chosen = position.chosen
    assert (chosen.token_id, chosen.logprob, chosen.rank) == (half, -2.5, 3)
    assert (chosen.decoded_token, chosen.bytes) == ("bytes:\\xe2", b"\xe2")
    assert [(top.token_id, top.logprob, top.rank) for top in position.top] == [
        (5, -0.5, 1),
        (half, -2.0, 2),
    ]
    assert delta.has_prompt_logprobs and request.prompt_logprobs[0] is None
    assert request.prompt_logprobs[1].chosen.decoded_token == processor.tokenizer.token(5).text
    assert request.sequences[0].cumulative_logprob == -2.5


def test_no_logprobs_unless_asked_for(processor):
    request = start(processor)
    assert feed(processor, [5])[0].logprobs is None
    assert request.sequences[0].logprobs is None


def test_a_prompt_alone(processor):
    request = start(processor, max_tokens=0)
    delta = processor.process(CoreOutput(request_id="r", finish_reason="length"))
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("", [], "length")
    assert request.finished


def test_an_error_ends_the_request(processor):
    request = start(processor)
    delta = processor.process(
        CoreOutput(request_id="r", finish_reason="error", error="the worker died")
    )
    assert delta.finish_reason == "error" and request.error == "the worker died"


def test_what_comes_after_the_end_is_no_news(processor):
    start(processor)
    feed(processor, [5], finish_reason="length")
    assert processor.process(CoreOutput(request_id="r", token_ids=[5])) is None
    assert len(processor.request.sequences[0].token_ids) == 1


def test_facts_about_the_request_are_kept(processor):
    request = start(processor)
    processor.process(
        CoreOutput(
            request_id="r",
            token_ids=[5],
            num_cached_tokens=3,
            queued_ns=11,
            first_scheduled_ns=22,
        )
    )
    processor.process(CoreOutput(request_id="r", token_ids=[6], num_preemptions=2))
    facts = (request.num_cached_tokens, request.queued_ns, request.first_scheduled_ns)
    assert facts == (3, 11, 22) and request.num_preemptions == 2
    assert request.usage.cached_tokens == 3


def test_the_full_record_tells_what_went_out_and_what_waits(processor, recorder):
    seen = []
    recorder.subscribe(seen.extend)
    start(processor, stop=["stop here!"])
    feed(processor, ids_of(processor, TEXT), finish_reason="length")
    recorder.flush()
    emitted = [event for event in seen if isinstance(event, TextEmitted)]
    assert "".join(event.text for event in emitted) == TEXT
    held = [event for event in seen if isinstance(event, TextHeldBack)]
    assert {event.why for event in held} == {
        "it may be the start of a stop string",
        "a character is not complete yet",
    }
    assert all(event.num_chars > 0 for event in held)


def test_no_text_events_at_level_steps(byte_level):
    recorder = Recorder("steps")
    seen = []
    recorder.subscribe(seen.extend)
    processor = OneRequest(byte_level, recorder)
    start(processor)
    feed(processor, ids_of(processor, TEXT), finish_reason="length")
    recorder.close()
    assert seen == []


def test_deltas_join_and_so_do_their_pieces():
    def delta(text, token, pieces):
        return TextDelta(
            request=None, index=0, text=text, token_ids=[token], logprobs=None, pieces=pieces
        )

    first = delta("a", 1, [ReasoningPiece("a")])
    second = delta("bc", 2, [ReasoningPiece("b"), ContentPiece("c")])
    third = delta("", 3, [ToolCallBegun(0, "id", "f"), ToolCallArguments(0, "{")])
    fourth = delta("", 4, [ToolCallArguments(0, "}"), ToolCallArguments(1, "[")])
    second.join(first)
    third.join(second)
    fourth.join(third)
    assert (fourth.text, fourth.token_ids) == ("abc", [1, 2, 3, 4])
    assert fourth.pieces == [
        ReasoningPiece("ab"),
        ContentPiece("c"),
        ToolCallBegun(0, "id", "f"),
        ToolCallArguments(0, "{}"),
        ToolCallArguments(1, "["),
    ]
    plain = delta("y", 2, None)
    plain.join(delta("x", 1, None))
    assert plain.pieces is None and plain.text == "xy"
