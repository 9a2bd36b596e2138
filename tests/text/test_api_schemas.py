"""Texts of the pocket model follow schemas as APIs have them: 8 of the 200, all with `--full`."""

from __future__ import annotations

import json

import jsonschema
import pytest

from engine import LLM, SamplingParams
from engine.trace.events import (
    RequestPreempted,
    SampleDrawn,
    SpecVerified,
    StepFinished,
    StepPlanned,
)
from tests.support.api_schemas import API_SCHEMAS
from tests.support.cases import FULL
from tests.support.proposing import NothingCosts

pytestmark = pytest.mark.slow

PROMPT = "What is a KV cache?"
N = 4
assert len(API_SCHEMAS) == 200
CHOSEN = list(API_SCHEMAS.items())[:: 1 if FULL else 27]  # of all four shapes
OPTIONS = {"cpu_threads": 1, "device": "cpu", "block_size": 8, "max_model_len": 200}
PROPOSING = {"method": "ngram"}
WAYS = {
    "overlapped": {"async_scheduling": True},
    "proposed": {"speculative_config": PROPOSING},
    "proposed, overlapped": {"speculative_config": PROPOSING, "async_scheduling": True},
    "proposed, chunked": {
        "speculative_config": PROPOSING,
        "max_num_batched_tokens": 9,
        "num_gpu_blocks_override": 50,
    },
    "recompute": {"num_gpu_blocks_override": 50, "preemption_mode": "recompute"},
    "swap": {"num_gpu_blocks_override": 50, "preemption_mode": "swap", "swap_space": 0.01},
    "chunked": {"max_num_batched_tokens": 7, "enable_prefix_caching": False},
}


def params(place: int) -> SamplingParams:
    schema = CHOSEN[place][1]
    form = {"json": schema, "disable_any_whitespace": True}
    return SamplingParams(structured_outputs=form, temperature=1.5, seed=place, max_tokens=180, n=N)


def at_any_cost(llm: LLM) -> None:
    """Let all proposals be checked; on a busy machine steps seem to cost anything."""
    speculator = llm.core.scheduler.speculator
    if speculator is not None:
        speculator.costs = NothingCosts()


def texts_of(llm: LLM, places: list[int]) -> list[list[tuple[str, str | None]]]:
    outputs = llm.generate([PROMPT] * len(places), [params(i) for i in places], use_tqdm=False)
    return [[(one.text, one.finish_reason) for one in output.outputs] for output in outputs]


@pytest.fixture(scope="module")
def together() -> list[list[tuple[str, str | None]]]:
    """What all requests answer at once, n = 4 each."""
    with LLM("pocket", **OPTIONS, max_num_seqs=24) as llm:
        return texts_of(llm, list(range(len(CHOSEN))))


def test_every_text_is_an_instance_of_its_schema(together):
    # Digits of a number or of a second have no bound, so at this temperature a text may be cut.
    reasons = [reason for texts in together for _, reason in texts]
    assert set(reasons) <= {"stop", "length"} and reasons.count("stop") >= 0.9 * len(reasons)
    for (_, schema), texts in zip(CHOSEN, together):
        for text in (text for text, reason in texts if reason == "stop"):
            # RFC 3339 has a year 0000, and Python's dates haven't
            instance = json.loads(text.replace('"0000-', '"0004-'))
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.Draft202012Validator(schema, format_checker=checker).validate(instance)


def test_each_request_answers_the_same_alone(together):
    with LLM("pocket", **OPTIONS) as llm:
        for place in range(0, len(CHOSEN), 4):
            assert texts_of(llm, [place])[0] == together[place], CHOSEN[place][0]


@pytest.mark.parametrize("way", WAYS)
def test_the_same_texts_however_they_are_computed(together, way):
    with LLM("pocket", trace="steps", **{**OPTIONS, "max_num_seqs": 24, **WAYS[way]}) as llm:
        at_any_cost(llm)
        assert texts_of(llm, list(range(len(CHOSEN)))) == together
        record = llm.record()
    preempted = {event.mode for event in record if isinstance(event, RequestPreempted)}
    if way in ("recompute", "swap"):
        assert preempted == {way}
    verified = [event for event in record if isinstance(event, SpecVerified)]
    assert bool(verified) == (way != "overlapped")
    # the grammar allowed nothing else
    assert all(event.num_accepted == event.num_proposed for event in verified)
    if way == "chunked":
        rows = [row for event in record if isinstance(event, StepPlanned) for row in event.rows]
        assert any(not row.samples for row in rows)


def test_tokens_that_a_grammar_forces_come_several_a_step():
    """Jump-ahead: fewer steps, the same text, and the same record of each draw."""
    told = {}
    for way in ("one by one", "ahead"):
        with LLM("pocket", trace="full", **OPTIONS) as llm:
            llm.core.executor.table.grammars.proposes = way == "ahead"
            texts_of(llm, [0])
            record = llm.record()
        steps = [event for event in record if isinstance(event, StepFinished)]
        draws = {
            (event.request_id, event.position): (
                event.token_id, event.num_allowed, round(event.removed, 5), event.instead_of,
            )
            for event in record if isinstance(event, SampleDrawn)
        }  # fmt: skip
        told[way] = len(steps), sum(step.num_sampled for step in steps), draws
    (steps, sampled, draws), (fewer, sampled_ahead, draws_ahead) = told.values()
    assert draws == draws_ahead and len(draws) == sampled == sampled_ahead
    assert fewer < 0.8 * steps
