"""Texts of the pocket model keep to their forms, whatever happens to their sequences."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import pytest

from engine import LLM, AsyncLLM, SamplingParams
from engine.sampling_params import ParameterError
from engine.structured_outputs import StructuredOutputsParams
from engine.trace.events import (
    GrammarCompiled,
    RequestFinished,
    RequestPreempted,
    SampleDrawn,
    StepPlanned,
)
from tests.support.schemas import SCHEMAS, obj

PROMPT = "What is a KV cache?"
NAMES = list(SCHEMAS)
WAYS = {
    "plain": {},
    "overlapped": {"async_scheduling": True},
    "recompute": {"num_gpu_blocks_override": 14, "preemption_mode": "recompute"},
    "swap": {"num_gpu_blocks_override": 14, "preemption_mode": "swap", "swap_space": 0.01},
    "chunked": {"max_num_batched_tokens": 9, "enable_prefix_caching": False},
}
OPTIONS = {
    "cpu_threads": 1,
    "device": "cpu",
    "block_size": 8,
    "max_model_len": 104,
}


def params(place: int, form: dict, **more) -> SamplingParams:
    given = {"temperature": 1.5, "seed": place, "max_tokens": 90, **more}
    return SamplingParams(structured_outputs=form, **given)


def texts_of(llm: LLM, wanted: list[SamplingParams]) -> list[list[str]]:
    outputs = llm.generate([PROMPT] * len(wanted), wanted, use_tqdm=False)
    return [[one.text for one in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def llm():
    with LLM("pocket", trace="steps", **OPTIONS) as llm:
        yield llm


@pytest.fixture(scope="module")
def alone(llm) -> list[list[str]]:
    """What each schema's request answers alone, n = 2."""
    return [
        texts_of(llm, [params(place, {"json": SCHEMAS[name]}, n=2)])[0]
        for place, name in enumerate(NAMES)
    ]


def test_every_text_is_an_instance_of_its_schema(alone):
    complete = 0
    for name, texts in zip(NAMES, alone):
        for text in texts:
            try:
                found = json.loads(text)
            except ValueError:
                assert len(text) > 30, (name, text)  # cut at max_tokens: digits have no bound
                continue
            complete += 1
            jsonschema.validate(found, SCHEMAS[name], jsonschema.Draft202012Validator)
    assert complete > 1.9 * len(NAMES)


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[] if way == "recompute" else pytest.mark.slow) for way in WAYS],
)
def test_the_same_text_in_company_and_however_it_is_computed(alone, way):
    """Rule 9 with grammars: others beside it, both loops, both preemptions, chunks, forks."""
    with LLM("pocket", **{**OPTIONS, "max_num_seqs": 24, **WAYS[way]}) as llm:
        wanted = [params(i, {"json": SCHEMAS[name]}, n=2) for i, name in enumerate(NAMES)]
        free = [SamplingParams(temperature=1.0, max_tokens=40, seed=i) for i in range(4)]
        assert texts_of(llm, wanted + free)[: len(NAMES)] == alone
        record = llm.record()
    preempted = {event.mode for event in record if isinstance(event, RequestPreempted)}
    assert preempted == ({way} if way in ("recompute", "swap") else set())
    if way == "chunked":
        rows = [row for event in record if isinstance(event, StepPlanned) for row in event.rows]
        assert any(not row.samples for row in rows)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"regex": "[0-9]{3}-[a-z]{2}"}, r"\d{3}-[a-z]{2}"),
        ({"choice": ["yes", "no", "maybe so"]}, "yes|no|maybe so"),
        ({"grammar": 'root ::= "<" [a-c]{2,5} ">"'}, "<[a-c]{2,5}>"),
        ({"json": {"const": [1, {"a": 2}]}, "disable_any_whitespace": True}, r'\[1,{"a":2}\]'),
    ],
)
def test_other_forms(llm, form, pattern):
    [texts] = texts_of(llm, [params(3, form, n=4)])
    for text in texts:
        assert re.fullmatch(pattern, text), text


def test_a_text_ends_where_its_form_does(llm):
    """Neither min_tokens nor ignore_eos nor words that are banned make it go on or break it."""
    form = {"json": {"type": "boolean"}}
    for more in (
        {},
        {"min_tokens": 20},
        {"ignore_eos": True},
        {"min_tokens": 20, "ignore_eos": True, "temperature": 0},
        {"bad_words": ["true", "false", "t", "f"]},
        {"logit_bias": {1: 100}},
    ):
        output = llm.generate(PROMPT, params(1, form, **more), use_tqdm=False)[0].outputs[0]
        assert output.text in ("true", "false") and output.finish_reason == "stop", more
    open_end = llm.generate(PROMPT, params(1, {"regex": "[0-9]+"}, min_tokens=12), use_tqdm=False)
    assert len(open_end[0].outputs[0].token_ids) >= 12


def test_stop_strings_and_length_end_it_earlier(llm):
    form = {"regex": "[a-z]{80}"}
    short = llm.generate(PROMPT, params(1, form, max_tokens=5), use_tqdm=False)[0].outputs[0]
    assert short.finish_reason == "length" and len(short.token_ids) == 5
    whole = llm.generate(PROMPT, params(1, form), use_tqdm=False)[0].outputs[0]
    assert whole.finish_reason == "stop" and len(whole.text) == 80
    stop = whole.text[10:13]
    ended = llm.generate(PROMPT, params(1, form, stop=stop), use_tqdm=False)[0].outputs[0]
    assert ended.text == whole.text[: whole.text.index(stop)] and ended.stop_reason == stop


def test_a_string_that_never_closes_ends_at_max_tokens(llm):
    form = {"json": obj(text={"type": "string", "minLength": 5000})}
    output = llm.generate(PROMPT, params(1, form, max_tokens=40), use_tqdm=False)[0].outputs[0]
    assert output.finish_reason == "length" and output.text.lstrip().startswith("{")


def test_rules_that_leave_no_token_fail_the_request_with_a_reason(llm):
    wanted = params(1, {"choice": ["yes"]}, allowed_token_ids=[5])
    with pytest.warns(UserWarning, match="allowed_token_ids names no token that its grammar"):
        failed, other = llm.generate([PROMPT] * 2, [wanted, SamplingParams()], use_tqdm=False)
    assert failed.outputs[0].finish_reason == "error"
    assert other.outputs[0].finish_reason in ("stop", "length")


def test_a_matcher_that_fails_fails_the_request_and_no_other(llm):
    """A failed matcher allows the end, as if the text were complete: that would be broken JSON."""
    form = {"regex": "([a-z]{1,200}){1,200}"}  # more states than a text may need
    with pytest.warns(UserWarning, match="its grammar failed: .*(states|expressions)"):
        failed, other = llm.generate(
            [PROMPT] * 2, [params(1, form), params(1, {"choice": ["a"]})], use_tqdm=False
        )
    assert failed.outputs[0].finish_reason == "error" and other.outputs[0].text == "a"


def test_what_cannot_be_compiled_is_refused_before_anything_runs(llm):
    with pytest.raises(ParameterError, match=r"at /properties/a: Unimplemented") as refused:
        llm.generate(PROMPT, params(1, {"json": {"properties": {"a": {"not": {}}}}}))
    assert refused.value.param == "structured_outputs.json"


def test_the_record_says_what_the_grammar_did():
    with LLM("pocket", trace="full", **OPTIONS) as llm:
        schema = StructuredOutputsParams(json=obj(a={"enum": ["x", "y"]}))
        for _ in range(2):
            wanted = SamplingParams(structured_outputs=schema, max_tokens=60, seed=1)
            text = llm.generate(PROMPT, wanted, use_tqdm=False)[0].outputs[0].text
        free = llm.generate(PROMPT, SamplingParams(max_tokens=1, seed=1), use_tqdm=False)
        record = llm.record()
    assert json.loads(text)["a"] in "xy"
    first, second = [event for event in record if isinstance(event, GrammarCompiled)]
    assert first.form == "json" and not first.cached and first.duration_us > 0
    assert second.cached and second.num_bytes == first.num_bytes
    draws = [event for event in record if isinstance(event, SampleDrawn)]
    held, last = draws[:-1], draws[-1]
    assert all(0 < draw.num_allowed < 2048 and 0 <= draw.removed <= 1 for draw in held)
    assert last.num_allowed == 0 and last.instead_of == -1
    # the same seed at the same position: the token that was drawn without a grammar
    assert held[0].instead_of == free[0].outputs[0].token_ids[0] != held[0].token_id
    assert 0 < held[0].instead_of_probability <= held[0].removed
    finished = [event for event in record if isinstance(event, RequestFinished)]
    assert "grammar's text is complete" in finished[0].why


def test_a_program_with_an_event_loop():
    async def answers():
        async with await asyncio.to_thread(AsyncLLM, "pocket", **OPTIONS) as llm:

            async def last(place, form):
                async for output in llm.generate(PROMPT, params(place, form)):
                    text = output.outputs[0].text
                return text

            forms = [{"choice": ["yes", "no"]}, {"json": SCHEMAS["an object"]}, {"regex": "a{3}"}]
            wrong = last(9, {"regex": "(a"})
            return await asyncio.gather(
                *(last(i, form) for i, form in enumerate(forms)), wrong, return_exceptions=True
            )

    choice, found, letters, refused = asyncio.run(answers())
    assert choice in ("yes", "no") and letters == "aaa"
    jsonschema.validate(json.loads(found), SCHEMAS["an object"])
    assert isinstance(refused, ParameterError)
