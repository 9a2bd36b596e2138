"""Rule 11 up to the text: stop strings, ends and counts are where they are without proposals."""

from __future__ import annotations

import pytest

import engine.kernels
from engine import LLM, SamplingParams
from engine.structured_outputs import StructuredOutputsParams
from engine.trace import events
from tests.parity.test_company import EXACT
from tests.support.proposing import NothingCosts, Replay

PROMPTS = ["one two three four five six " * 6, "What is a KV cache? A KV cache is a cache. What is"]
LOOKUP = {"method": "ngram", "num_speculative_tokens": 7, "prompt_lookup_min": 1}
FORM = {
    "type": "object",
    "properties": {"kind": {"enum": ["story", "fact"]}, "long": {"type": "boolean"}},
    "required": ["kind", "long"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def both():
    """One engine without proposals, and one that proposes the greedy answers, all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLASSHOUSE_CPU_VARIANT", EXACT[0])
        engine.kernels.forget()
        options = {"dtype": "float32", "log_format": "off", "cpu_threads": 1}
        with LLM("pocket", **options) as plain, LLM(
            "pocket", speculative_config=LOOKUP, **options
        ) as proposing:  # fmt: skip
            proposing.core.scheduler.speculator.costs = NothingCosts()
            proposing.core.scheduler.speculator.proposer = replay = Replay()
            greedy = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
            for request in plain.generate(PROMPTS, greedy):
                replay.texts.append([*request.prompt_token_ids, *request.outputs[0].token_ids])
            yield plain, proposing
    engine.kernels.forget()


def answers(llm: LLM, params: SamplingParams) -> list:
    return [
        (o.text, o.token_ids, o.finish_reason, o.stop_reason, o.cumulative_logprob, o.logprobs)
        for request in llm.generate(PROMPTS, params)
        for o in request.outputs
    ]


def some_text(llm: LLM) -> str:
    return answers(llm, SamplingParams(temperature=0, max_tokens=60, ignore_eos=True))[0][0]


@pytest.mark.parametrize("begin", [3, 11, 26, 40])
@pytest.mark.parametrize("kept", [False, True])
def test_stop_strings_inside_of_accepted_tokens(both, begin, kept):
    """Nothing behind the string remains: no text, no token, no log-probability."""
    stop = some_text(both[0])[begin : begin + 5]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True, stop=stop, logprobs=2)
    params.include_stop_str_in_output = kept
    plain, proposing = (answers(llm, params) for llm in both)
    assert plain == proposing
    assert plain[0][2:4] == ("stop", stop) and len(plain[0][5]) == len(plain[0][1])


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0, "min_tokens": 20},
        {"temperature": 0.5, "seed": 3, "n": 3, "logprobs": 1},
        {"temperature": 0, "repetition_penalty": 1.2, "bad_words": ["cache", "the same"]},
        {"temperature": 0.7, "seed": 5, "top_p": 0.9, "max_tokens": 5},
    ],
)
def test_same_outputs(both, asked):
    params = SamplingParams(**{"max_tokens": 50, **asked})
    plain, proposing = (answers(llm, params) for llm in both)
    assert plain == proposing


def test_proposals_were_checked(both):
    seen: list[events.Event] = []
    both[1].recorder.subscribe(seen.extend)
    some_text(both[1])
    both[1].recorder.flush()
    verified = [event for event in seen if isinstance(event, events.SpecVerified)]
    assert sum(e.num_accepted for e in verified) > 90, "60 tokens a prompt in some nine steps"


def test_a_draft_model_beside_a_grammar(both):
    """Pocket proposes for itself; for a form the grammar proposes, and the model never."""
    form = StructuredOutputsParams(json=FORM, disable_any_whitespace=True)
    params = [
        SamplingParams(temperature=0.8, seed=2, max_tokens=60, structured_outputs=form),
        SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=1),
        SamplingParams(temperature=0.5, seed=4, n=2, max_tokens=40, ignore_eos=True),
    ]
    prompts = [PROMPTS[0], *PROMPTS]
    draft = {"method": "draft", "model": "pocket", "num_speculative_tokens": 3}
    with LLM(
        "pocket", speculative_config=draft, dtype="float32", log_format="off", cpu_threads=1,
        num_gpu_blocks_override=64,
    ) as drafting:  # fmt: skip
        drafting.core.scheduler.speculator.costs = NothingCosts()
        drafting.core.scheduler.speculator.passes = NothingCosts()
        seen: list[events.Event] = []
        drafting.recorder.subscribe(seen.extend)
        told = [
            [[(o.text, o.token_ids, o.logprobs) for o in r.outputs] for r in it]
            for it in (llm.generate(prompts, params) for llm in (both[0], drafting))
        ]
        drafting.recorder.flush()
    assert told[0] == told[1]
    counts: dict[str, list[int]] = {}
    for event in seen:
        if isinstance(event, events.SpecVerified):
            its = counts.setdefault(event.request_id, [0, 0])
            its[0] += event.num_proposed
            its[1] += event.num_accepted
    form_proposed, *others = counts.values()
    assert form_proposed[0] == form_proposed[1] > 0, "what a grammar forces is right"
    assert len(others) == 3, "a sequence that forked is drafted for, too"
    (proposed, right), *drawn = others
    assert right == proposed > 20, "greedy, in fp32: it draws what it proposed"
    assert all(0 < right < proposed for proposed, right in drawn)
