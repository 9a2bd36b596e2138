"""SamplingParams refuses what can't be meant, and says the limit."""

from __future__ import annotations

import math

import msgspec
import numpy as np
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
        ("logprobs", -2),
        ("prompt_logprobs", -2),
        ("stop", ["a"] * 65),
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


WRONG = {
    "max_tokens": [2.5, "5", True, [1]],
    "n": [2.0, None, "2", False],
    "temperature": [None, "hot", True, 1j],
    "top_p": [None, "1"],
    "top_k": [2.5, None],
    "seed": [1.5, "s"],
    "stop": [[1], 5, {"a": 1}, [None], [["x"]]],
    "stop_token_ids": ["ab", [1.5], 3, ["1"], [True]],
    "bad_words": ["x", [1], 3],
    "ignore_eos": [1, "yes", None],
    "logprobs": [2.0, True, "all"],
    "logit_bias": [[(1, 2)], {"5": 1.0}, {5: "x"}, {1.5: 1.0}, {5: None}],
    "allowed_token_ids": [range(3), "12", [[1]]],
    "bad_words_token_ids": [[1], ["x"]],
    "skip_special_tokens": ["no"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_a_value_of_another_type_is_named(name, value):
    with pytest.raises(ParameterError, match=f"^{name} is .*; it must be .+") as error:
        SamplingParams(**{name: value})
    assert error.value.param == name and "\n" not in str(error.value)


def test_the_words_of_a_complaint():
    said = {}
    for name, value in [
        ("max_tokens", 2.5),
        ("bad_words", "x"),
        ("stop", [1]),
        ("seed", "s" * 999),
    ]:
        with pytest.raises(ParameterError) as error:
            SamplingParams(**{name: value})
        said[name] = str(error.value)
    assert said["max_tokens"] == "max_tokens is 2.5; it must be a whole number or None."
    assert said["bad_words"] == "bad_words is 'x'; it must be a list of strings or None."
    assert said["stop"] == "stop is [1]; it must be a list of strings or a string or None."
    assert len(said["seed"]) < 150


def test_every_field_is_checked():
    """Every field, also one that is added later, refuses an object."""
    for name in SamplingParams.__struct_fields__:
        with pytest.raises(ParameterError, match=name):
            SamplingParams(**{name: object()})


def test_numbers_of_numpy_and_tuples_become_plain_ones():
    params = SamplingParams(
        n=np.int64(2), temperature=np.float32(0.5), stop=("a", "b"), stop_token_ids=(np.int32(3),)
    )
    assert (params.n, params.temperature, params.stop) == (2, 0.5, ["a", "b"])
    assert params.stop_token_ids == [3] and type(params.stop_token_ids[0]) is int
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params
    given = [1, 2]
    assert SamplingParams(stop_token_ids=given).stop_token_ids is given  # no copy of what fits


def test_a_clone_shares_nothing():
    params = SamplingParams(stop=["a"], logit_bias={5: 1.0}, seed=3)
    other = params.clone()
    assert other == params
    other.stop.append("b")
    other.logit_bias[6] = 2.0
    assert params == SamplingParams(stop=["a"], logit_bias={5: 1.0}, seed=3)


def test_how_many_log_probabilities_an_engine_gives():
    params = SamplingParams(logprobs=-1, prompt_logprobs=20)
    assert params.with_limits(18, 20).logprobs == 18
    assert params.with_limits(500, -1).logprobs == 500
    assert params.with_limits(500, -1).prompt_logprobs == 20
    assert params.logprobs == -1
    few = SamplingParams(logprobs=3)
    assert few.with_limits(500, 20) is few
    for params, name in (
        (few, "logprobs"),
        (SamplingParams(prompt_logprobs=-1), "prompt_logprobs"),
    ):
        with pytest.raises(ParameterError, match="at most 2") as caught:
            params.with_limits(500, 2)
        assert caught.value.param == name


def test_named_tokens_take_the_place_of_the_most_probable():
    assert SamplingParams(logprobs=5, logprob_token_ids=[7]).logprobs == 0
    assert SamplingParams(logprob_token_ids=list(range(128))).logprobs == 0
    for ids in ([], [7] * 129):
        with pytest.raises(ParameterError) as caught:
            SamplingParams(logprob_token_ids=ids)
        assert caught.value.param == "logprob_token_ids"
