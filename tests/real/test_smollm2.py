"""SmolLM2-135M-Instruct by its name: tokens, greedy answers, stop tokens, cached prefixes."""

from __future__ import annotations

import json
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


@pytest.fixture(scope="module")
def server(smollm2):
    with closing(ServerProcess("--model", "smollm2", "--dtype", "bfloat16")) as server:
        server.http.timeout = 240  # eight thousand tokens take seconds, on a busy machine many
        server.wait_until_ready()
        yield server


def asked(server, path: str, **body) -> dict:
    answer = server.http.post(path, json={"temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_it_answers_in_bf16_over_http_as_in_fp32(server):
    """ "The" is 0.1 nats before "L'" here: with a rounded residual stream or head "L'" won."""
    answer = asked(server, "/v1/chat/completions", messages=[FRANCE], max_tokens=40)["choices"][0]
    assert answer["message"]["content"] == "The capital of France is Paris."
    assert answer["finish_reason"] == "stop"


@pytest.mark.full
def test_eight_thousand_tokens_are_read_and_found_again(server):
    """The whole context of 8,192; the second time nearly all of it is in the prefix cache."""
    text = "\n".join(topics[name] for name in sorted(topics)[:40])
    ids = server.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    answers = [
        asked(server, "/v1/completions", prompt=ids[:8160], max_tokens=24, logprobs=1)
        for _ in range(2)
    ]
    first, again = (answer["choices"][0] for answer in answers)
    assert first["text"] == again["text"] and len(first["logprobs"]["tokens"]) == 24
    assert first["logprobs"]["token_logprobs"] == again["logprobs"]["token_logprobs"]
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]
    assert cached[0] == 0 and cached[1] >= 8144
    too_long = server.http.post("/v1/completions", json={"prompt": ids[:8193], "max_tokens": 1})
    assert too_long.status_code == 400 and "8192" in too_long.text.replace(",", "")


def test_streamed_characters_of_several_tokens_arrive_whole(server):
    body = {"prompt": "日本語の文章：こんにちは、世界。", "max_tokens": 40, "temperature": 0}
    whole = asked(server, "/v1/completions", **body)["choices"][0]["text"]
    pieces = []
    with server.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                pieces.append(json.loads(line[6:])["choices"][0]["text"])
    assert "".join(pieces) == whole and not whole.isascii()
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_the_page_is_served_beside_it(server):
    page = server.http.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200 and "<html" in page.text
