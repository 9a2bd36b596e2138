"""SamplingParams refuses what can't be meant, and says the limit."""

from __future__ import annotations

import math

import msgspec
import pytest

from engine.sampling_params import ParameterError, SamplingParams


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -2.5),
        ("max_tokens", -1),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("stop", ["a"] * 5),
        ("stop", [""]),
        ("seed", 2**63),
        ("allowed_token_ids", []),
        ("logit_bias", {3: 101.0}),
        ("truncate_prompt_tokens", 0),
    ],
)
def test_out_of_range(param, value):
    with pytest.raises(ParameterError) as caught:
        SamplingParams(**{param: value})
    assert caught.value.param == param


def test_contradictions():
    with pytest.raises(ParameterError, match="temperature 0"):
        SamplingParams(n=2, temperature=0.0)
    with pytest.raises(ParameterError, match="min_tokens"):
        SamplingParams(min_tokens=20, max_tokens=10)


def test_conveniences():
    assert SamplingParams(stop="x").stop == ["x"]
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(temperature=0.5).changed() == {"temperature": 0.5}


def test_vocabulary():
    params = SamplingParams(stop_token_ids=[5], logit_bias={99: 1.0})
    params.check_vocabulary(100)
    with pytest.raises(ParameterError, match="token 99"):
        params.check_vocabulary(50)


def test_crosses_a_process_boundary():
    params = SamplingParams(n=3, stop=["a"], seed=4, logit_bias={1: -1.0}, bad_words=["x"])
    packed = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(packed, type=SamplingParams) == params
