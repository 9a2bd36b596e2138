"""SmolLM2-135M-Instruct by its name: tokens, greedy answers, stop tokens, cached prefixes."""

from __future__ import annotations

from contextlib import closing
from pydoc_data.topics import topics

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from engine import LLM, SamplingParams
from tests.api.conftest import ServerProcess

FRANCE = {"role": "user", "content": "What is the capital of France?"}
TEXTS = [
    topics["assignment"],
    "Hello  world 2025 <|im_start|>user\n\n 1,234.56e10 don't I'LL",
    "naïve 日本語 العربية 👩‍👩‍👧 １２３ ½ ² ٣٤٥ \t\r\n  ",
    "\n\n2025\n \n 7",
]


@pytest.fixture(scope="module")
def llm(smollm2):
    with LLM("smollm2", dtype="float32", max_model_len=2048, log_format="off") as llm:
        yield llm


def test_tokens_are_cut_as_the_word_smollm_says(smollm2):
    """llama.cpp's rule for it: every digit by itself, then GPT-2's words. transformers' own
    conversion of GGUF files leaves the digits' step out."""
    ours = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    rule = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    rule.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in TEXTS:
        assert ours.encode(text).ids == rule.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    assert ours.encode("<|im_start|>").ids == [1] and ours.encode("<|im_end|>").ids == [2]


def test_it_answers_and_stops(llm):
    [answer] = llm.chat([[FRANCE]], SamplingParams(temperature=0, max_tokens=40))
    assert answer.outputs[0].text == "The capital of France is Paris."
    assert answer.outputs[0].finish_reason == "stop"


def test_a_second_turn_finds_the_first_in_the_cache(llm):
    talk = [FRANCE, {"role": "assistant", "content": "The capital of France is Paris."}]
    talk.append({"role": "user", "content": "And what river flows through it?"})
    greedy = SamplingParams(temperature=0, max_tokens=16)
    llm.chat([[FRANCE]], greedy)
    [answer] = llm.chat([talk], greedy)
    assert (answer.num_cached_tokens or 0) >= 16


def test_it_answers_in_bf16_over_http_as_in_fp32(smollm2):
    """ "The" is 0.1 nats before "L'" here: with a rounded residual stream or head "L'" won."""
    with closing(ServerProcess("--model", "smollm2", "--dtype", "bfloat16")) as server:
        server.wait_until_ready()
        answer = server.http.post(
            "/v1/chat/completions",
            json={"messages": [FRANCE], "temperature": 0, "max_tokens": 40},
        ).json()["choices"][0]
    assert answer["message"]["content"] == "The capital of France is Paris."
    assert answer["finish_reason"] == "stop"
