"""Tokens that a grammar forces come several a step, with whatever else a request asks for."""

from __future__ import annotations

import math

import pytest

from engine import LLM, SamplingParams
from engine.trace.events import SpecVerified, StepFinished

PROMPT = "What is a KV cache?"
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "street", "open"],
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "street": {"const": "Lange Gasse"},
        "open": {"type": "boolean"},
    },
}
FORM = {"json": SCHEMA, "disable_any_whitespace": True}
ASKED = {
    "hot": {"temperature": 1.5, "seed": 3},
    "greedy": {"temperature": 0.0},
    "penalties": {
        "temperature": 1.5, "seed": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.5,
    },
    "logprobs": {"temperature": 1.0, "seed": 5, "logprobs": 2},
    "bad words": {"temperature": 1.5, "seed": 3, "bad_words": ["street", '"']},
    "min_tokens": {"temperature": 1.5, "seed": 3, "min_tokens": 30},
    "no form": {"temperature": 1.0, "seed": 3, "max_tokens": 12},
    "several": {"temperature": 1.5, "seed": 7, "n": 3},
    "cut in a run": {"temperature": 1.5, "seed": 3, "max_tokens": 3},
}  # fmt: skip
OPTIONS = {"cpu_threads": 1, "device": "cpu", "block_size": 8, "max_model_len": 200}


def params(name: str) -> SamplingParams:
    form = {} if name == "no form" else {"structured_outputs": FORM}
    return SamplingParams(**{"max_tokens": 80, **form, **ASKED[name]})


def told(llm: LLM) -> list[list[tuple]]:
    """What each request gets, log-probabilities too, all at once."""
    outputs = llm.generate([PROMPT] * len(ASKED), [params(name) for name in ASKED], use_tqdm=False)
    return [
        [
            (
                one.token_ids,
                one.finish_reason,
                one.logprobs
                and [{t: round(p.logprob, 3) for t, p in by.items()} for by in one.logprobs],
            )
            for one in output.outputs
        ]
        for output in outputs
    ]


@pytest.mark.parametrize("rows", [64, 12])
def test_the_same_tokens_in_fewer_steps(rows):
    """The overlapped loop takes one token a step. With 12 rows not all that is forced has room."""
    found = {}
    for way in ("one by one", "ahead"):
        overlapped = {"async_scheduling": way == "one by one", "max_num_seqs": rows}
        with LLM("pocket", trace="steps", **OPTIONS, **overlapped) as llm:
            texts = told(llm)
            record = llm.record()
        steps = sum(isinstance(event, StepFinished) for event in record)
        verified = [event for event in record if isinstance(event, SpecVerified)]
        assert all(event.num_accepted == event.num_proposed for event in verified)
        found[way] = texts, steps, len(verified)
    (texts, steps, none), (others, fewer, some) = found.values()
    assert others == texts and none == 0 < some and fewer < 0.9 * steps
    cut = texts[list(ASKED).index("cut in a run")][0]
    assert len(cut[0]) == 3 and cut[1] == "length"
    assert all(math.isfinite(p) for by in texts[3][0][2] for p in by.values())


def test_without_a_grammar_nothing_is_proposed():
    with LLM("pocket", trace="steps", **OPTIONS) as llm:
        llm.generate([PROMPT], SamplingParams(max_tokens=20, temperature=0.0), use_tqdm=False)
        assert not any(isinstance(event, SpecVerified) for event in llm.record())
