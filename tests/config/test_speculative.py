"""What `--speculative-config` takes, and how it refuses the rest."""

from __future__ import annotations

import re

import pytest

from engine.config import ConfigError, EngineConfig
from engine.config.speculative import Speculation


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"method": "ngram"}, (15, 1, 16)),
        ({"method": "ngram", "num_speculative_tokens": 3}, (3, 1, 16)),
        ({"method": "ngram", "prompt_lookup_max": 1}, (15, 1, 1)),
        ({"method": "ngram", "prompt_lookup_min": 20}, (15, 20, 20)),
        ({"method": "ngram", "prompt_lookup_min": 3, "prompt_lookup_max": 5}, (15, 3, 5)),
        ({"method": "ngram", "prompt_lookup_min": None}, (15, 1, 16)),
    ],
)
def test_what_is_asked_for(given, asked):
    assert EngineConfig(speculative_config=given).speculation == Speculation("ngram", *asked)


@pytest.mark.parametrize(("given", "most"), [({}, 4), ({"num_speculative_tokens": 2}, 2)])
def test_a_draft_model_is_asked_for(given, most):
    asked = {"method": "draft", "model": "smollm2", **given}
    config = EngineConfig(speculative_config=asked, max_num_seqs=8)
    assert config.speculation == Speculation("draft", most, model="smollm2")
    assert config.max_step_rows == 8 * (1 + most)


def test_nothing_is_asked_for():
    assert EngineConfig().speculation is None
    assert EngineConfig(max_num_seqs=9).max_step_rows == 9


@pytest.mark.parametrize(("seats", "rows"), [(1, 16), (5, 80), (100, 128), (300, 300)])
def test_rows_of_a_step(seats, rows):
    config = EngineConfig(max_num_seqs=seats, speculative_config={"method": "ngram"})
    assert config.max_step_rows == rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_speculative_tokens": 3}, "names no method"),
        ({"method": "eagle"}, "has the method 'eagle'"),
        ({"method": ["ngram"]}, "has the method"),
        ({"method": "draft"}, "names no model"),
        ({"method": "draft", "model": 3}, "has the model 3"),
        ({"method": "draft", "model": "x", "prompt_lookup_max": 3}, "has 'prompt_lookup_max'"),
        ({"method": "draft", "model": "x", "num_speculative_tokens": 65}, "1 to 64"),
        ({"method": "ngram", "model": "x"}, "has 'model'"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens 0; .* 1 to 64"),
        ({"method": "ngram", "num_speculative_tokens": True}, "num_speculative_tokens True"),
        ({"method": "ngram", "num_speculative_tokens": 65}, "1 to 64"),
        ({"method": "ngram", "prompt_lookup_min": "2"}, "prompt_lookup_min '2'"),
        ({"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}, "above"),
    ],
)
def test_refusals_name_the_key(given, message):
    with pytest.raises(ConfigError, match=re.compile(message, re.I)):
        EngineConfig(speculative_config=given)


def test_as_a_flag():
    config = EngineConfig.from_args(
        ["--speculative-config", '{"method": "ngram", "num_speculative_tokens": 5}'], environ={}
    )
    assert config.speculation == Speculation("ngram", 5, 1, 16)
