from __future__ import annotations

import asyncio
import threading

import pytest
from tokenizers import processors

from engine.sampling_params import ParameterError, SamplingParams
from engine.structured_outputs import StructuredOutputsParams
from engine.text.errors import TextError
from engine.text.form_to_grammar import checked_grammar
from engine.text.input import LONG_TEXT, InputProcessor
from engine.text.messages.formats import HERMES, ReasoningFormat
from engine.text.messages.rules import MessageRules
from engine.text.tokenizer import Tokenizer
from engine.trace.events import RequestReceived, RequestRefused, RequestTokenized
from engine.trace.recorder import Recorder
from tests.text.tiny_tokenizers import byte_level_hf


@pytest.fixture
def events(recorder):
    seen = []
    recorder.subscribe(seen.extend)
    return seen


@pytest.fixture
def processor(byte_level, recorder):
    return InputProcessor(byte_level, max_model_len=32, vocab_size=620, recorder=recorder)


def test_text_becomes_a_request(processor, byte_level, recorder, events):
    params = SamplingParams(max_tokens=5, temperature=0.0)
    request = processor.process(
        "hello the engine",
        params,
        request_id="r",
        route="/v1/completions",
        client="10.0.0.1",
        ignored=["foo"],
        priority=3,
        cache_salt="mine",
    )
    assert request.prompt_token_ids == byte_level.encode("hello the engine")
    assert (request.priority, request.cache_salt, request.eos_token_ids) == (3, "mine", [2])
    assert request.arrival_ns > 0 and request.params is params
    recorder.flush()
    received, tokenized = events
    assert isinstance(received, RequestReceived) and isinstance(tokenized, RequestTokenized)
    assert (received.text, received.route, received.client, received.ignored) == (
        "hello the engine",
        "/v1/completions",
        "10.0.0.1",
        ["foo"],
    )
    assert received.params == {"max_tokens": 5, "temperature": 0.0}
    assert tokenized.num_tokens == len(request.prompt_token_ids)
    assert tokenized.duration_us > 0


def test_token_ids_pass_through(processor):
    assert processor.process([5, 6], SamplingParams(), request_id="r").prompt_token_ids == [5, 6]


def test_truncation_keeps_the_end(processor, recorder, events):
    params = SamplingParams(truncate_prompt_tokens=3)
    request = processor.process(list(range(5, 60)), params, request_id="r")
    assert request.prompt_token_ids == [57, 58, 59]
    recorder.flush()
    assert events[-1].truncated == 52


@pytest.mark.parametrize(
    ("prompt", "params", "param", "words"),
    [
        ("", {}, "prompt", "empty"),
        ([], {}, "prompt", "empty"),
        ([5] * 32, {}, "prompt", "maximum context length is 32 tokens, but the prompt has 32 tok"),
        ([5] * 40, {"max_tokens": 0}, "prompt", "32 tokens, but the prompt has 40 tokens"),
        ([5, 620], {}, "prompt", "token 620; the model's vocabulary has ids 0 to 619"),
        ([5, -1], {}, "prompt", "token -1"),
        ([5, "x"], {}, "prompt", "'x' at place 1"),
        ([True], {}, "prompt", "True at place 0"),
        ([5], {"stop_token_ids": [620]}, "stop_token_ids", "token 620"),
        ([5], {"logit_bias": {999: 1.0}}, "logit_bias", "token 999"),
        ([5], {"bad_words": [" "]}, "bad_words", "no token can spell"),
    ],
)
def test_what_is_refused(processor, recorder, events, prompt, params, param, words):
    with pytest.raises((TextError, ParameterError), match=words) as error:
        processor.process(prompt, SamplingParams(**params), request_id="r", trace_full=True)
    assert error.value.param == param
    recorder.flush()
    assert isinstance(events[-1], RequestRefused)
    assert events[-1].why == str(error.value)
    assert recorder.full_requests == set()


def test_a_prompt_alone_may_fill_the_context(processor):
    params = SamplingParams(max_tokens=0)
    assert len(processor.process([5] * 32, params, request_id="r").prompt_token_ids) == 32


def test_a_tokenizer_larger_than_the_model(byte_level, recorder):
    highest = max(byte_level.encode("hello the engine"))
    small = InputProcessor(byte_level, 32, vocab_size=highest, recorder=recorder)
    with pytest.raises(TextError, match=f"token {highest}; .* ids 0 to {highest - 1}"):
        small.process("hello the engine", SamplingParams(), request_id="r")


def test_bad_words_become_tokens(processor):
    params = SamplingParams(bad_words=["engine"])
    request = processor.process([5], params, request_id="r")
    assert request.params.bad_words_token_ids == processor.tokenizer.bad_words(["engine"])
    assert params.bad_words_token_ids is None  # the caller's own object stays as it was


def test_chat_prompts_get_no_second_beginning(metaspace, recorder):
    processor = InputProcessor(metaspace, 100, 700, recorder)
    ids = processor.process(
        "<s>hello", SamplingParams(), request_id="r", add_special_tokens=False
    ).prompt_token_ids
    assert ids.count(1) == 1


def test_full_record_for_one_request(byte_level):
    recorder = Recorder("steps")
    recorder.full_requests.add("r")  # whoever owns the id says so
    seen = []
    recorder.subscribe(seen.extend)
    processor = InputProcessor(byte_level, 32, 620, recorder)
    request = processor.process([5], SamplingParams(), request_id="r", trace_full=True)
    assert request.trace_full
    assert not processor.process([5], SamplingParams(), request_id="other").trace_full
    recorder.close()
    tokens = {e.request_id: e.token_ids for e in seen if isinstance(e, RequestTokenized)}
    assert tokens == {"r": [5], "other": []}


def test_long_text_leaves_the_event_loop(processor, monkeypatch):
    threads = []
    encode = processor.tokenizer.encode
    monkeypatch.setattr(
        processor.tokenizer,
        "encode",
        lambda *args: (threads.append(threading.current_thread()), encode(*args))[1],
    )
    params = SamplingParams(truncate_prompt_tokens=4)

    async def both():
        short = await processor.process_async("hello", params, request_id="a")
        long = await processor.process_async("hello " * LONG_TEXT, params, request_id="b")
        return short, long

    short, long = asyncio.run(both())
    assert threads[0] is threading.main_thread() and threads[1] is not threading.main_thread()
    assert len(long.prompt_token_ids) == 4 and short.request_id == "a"


@pytest.mark.parametrize(
    ("limit", "side", "kept"),
    [
        (3, "left", [7, 8, 9]),
        (3, "right", [1, 2, 3]),
        (99, "left", list(range(1, 10))),
        (99, "right", list(range(1, 10))),
        (-1, "right", list(range(1, 10))),
    ],
)
def test_which_tokens_are_kept(processor, limit, side, kept):
    params = SamplingParams(truncate_prompt_tokens=limit, truncation_side=side)
    request = processor.process(list(range(1, 10)), params, request_id="r")
    assert request.prompt_token_ids == kept


@pytest.mark.parametrize(("max_tokens", "kept"), [(5, 31), (None, 31), (0, 32)])
def test_a_prompt_is_cut_to_what_leaves_room_for_a_token(processor, max_tokens, kept):
    for side, first in (("left", 100 - kept), ("right", 0)):
        params = SamplingParams(
            truncate_prompt_tokens=-1, truncation_side=side, max_tokens=max_tokens
        )
        request = processor.process(list(range(100)), params, request_id="r")
        assert request.prompt_token_ids == list(range(first, first + kept))


def test_an_empty_text_is_the_token_that_begins_it_where_there_is_one(recorder):
    hf = byte_level_hf()
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    processor = InputProcessor(Tokenizer.of(hf), 32, 620, recorder)
    params = SamplingParams(prompt_logprobs=1)
    assert processor.process("", params, request_id="r").prompt_token_ids == [1]
    with pytest.raises(TextError, match="empty"):
        processor.process("", params, request_id="r", add_special_tokens=False)


def test_candidates_of_the_whole_vocabulary(byte_level, recorder):
    processor = InputProcessor(byte_level, 32, 620, recorder, max_logprobs=-1)
    params = SamplingParams(logprobs=-1, logprob_token_ids=None)
    assert processor.process([5], params, request_id="r").params.logprobs == 620
    few = InputProcessor(byte_level, 32, 620, recorder)
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(ParameterError, match="at most 20") as caught:
            few.process([5], SamplingParams(**{name: -1}), request_id="r")
        assert caught.value.param == name


def test_known_grammars_do_not_wait_for_one_that_is_checked(byte_level, recorder):
    """Nobody waits for another's grammar: a form, calls, and a form behind reasoning."""
    begun, go_on = threading.Event(), threading.Event()

    def check(form, special):
        if form.regex == "slow":
            begun.set()
            assert go_on.wait(30)
        return checked_grammar(form, special)

    processor = InputProcessor(byte_level, 32, 620, recorder, check=check)
    form = SamplingParams(structured_outputs=StructuredOutputsParams(json={"type": "boolean"}))
    slow = SamplingParams(structured_outputs=StructuredOutputsParams(regex="slow"))
    thinks = ReasoningFormat("thinks", "<think>", "</think>")
    calls = MessageRules(calls=HERMES, schemas={"now": {"type": "object"}}, must_call=True)
    known = [
        (form, None),
        (form, MessageRules(reasoning=thinks)),
        (SamplingParams(), calls),
    ]

    async def ask(params, rules):
        return await processor.process_async("hello", params, request_id="r", rules=rules)

    async def all_of_them():
        for params, rules in known:
            await ask(params, rules)
        first = asyncio.create_task(ask(slow, None))
        await asyncio.to_thread(begun.wait, 30)
        try:
            for params, rules in known:
                await asyncio.wait_for(ask(params, rules), 10)
            assert not first.done()
        finally:
            go_on.set()
        await first

    asyncio.run(all_of_them())
