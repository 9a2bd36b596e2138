"""What an answer says beside its text: keys, places of tokens, lengths of one, candidates."""

from __future__ import annotations

import json

import pytest

from engine.core.messages import CoreRequest
from engine.sampling_params import SamplingParams
from engine.server.answering.limits import Limits
from engine.server.http.errors import ApiError
from engine.server.routes import completions
from engine.text.tokenizer import Tokenizer
from tests.server.fake_engine import expected_text
from tests.server.tiny_tokenizer import USER, VOCAB_SIZE

HI = [{"role": "user", "content": "hi"}]


def stream(server, route, **body):
    """The chunks of a streamed answer."""
    body["stream"] = True
    with server.http.stream("POST", route, json=body) as answer:
        assert answer.status_code == 200
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_keys_that_are_always_there(server):
    choice = server.complete("a", max_tokens=1)["choices"][0]
    names = ("prompt_logprobs", "prompt_token_ids", "token_ids", "logprobs", "stop_reason")
    assert [choice[name] for name in names] == [None] * 5
    for chunk in stream(server, "/v1/completions", prompt="a", max_tokens=2):
        assert chunk["choices"][0]["token_ids"] is chunk["choices"][0]["prompt_token_ids"] is None
    chat = "/v1/chat/completions"
    answer = server.http.post(chat, json={"messages": HI, "max_tokens": 1}).json()
    assert answer["prompt_logprobs"] is answer["prompt_token_ids"] is None
    assert answer["choices"][0]["token_ids"] is None
    first, *rest = stream(server, chat, messages=HI, max_tokens=2)
    assert first["prompt_token_ids"] is None
    assert all(chunk["choices"][0]["token_ids"] is None for chunk in rest)
    for body in ({"prompt": "a"}, {"messages": HI}):
        assert server.http.post("/tokenize", json=body).json()["token_strs"] is None


def test_every_chunk_of_a_chat_has_its_usage_with_continuous_usage(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(
        server, "/v1/chat/completions", messages=HI, max_tokens=3, stream_options=options
    )
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all(chunk["usage"]["prompt_tokens"] == 5 for chunk in chunks)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3


# -------------------------------------------------------------------------------- lengths of one


def test_a_prompt_of_one_token(server):
    choice = server.complete([5], prompt_logprobs=1, max_tokens=1)["choices"][0]
    assert choice["prompt_logprobs"] == [None]
    chunks = stream(server, "/v1/completions", prompt=[5], prompt_logprobs=1, max_tokens=1)
    assert chunks[0]["choices"][0]["prompt_logprobs"] == [None]
    choice = server.complete([5], echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert choice["logprobs"] == {
        "tokens": ["\x05"],
        "token_logprobs": [None],
        "top_logprobs": [None],
        "text_offset": [0],
    }
    answer = server.complete([[5], [6, 7]], echo=True, logprobs=0, max_tokens=1, n=2)
    assert [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]] == [2, 2, 3, 3]
    answer = server.complete([5], max_tokens=0, echo=True, prompt_logprobs=0, n=2)
    assert [choice["prompt_logprobs"] for choice in answer["choices"]] == [[None], [None]]


def test_no_prompt_logprobs_unless_they_were_asked_for(server):
    choice = server.complete([5], logprobs=1, max_tokens=1)["choices"][0]
    assert choice["prompt_logprobs"] is None and len(choice["logprobs"]["tokens"]) == 1


# ------------------------------------------------------------------------------- places of tokens


def offsets(server, prompt, **fields):
    fields = {"max_tokens": 2, "logprobs": 0, **fields}
    choice = server.complete(prompt, **fields)["choices"][0]
    return choice["logprobs"]["text_offset"], choice["text"]


def test_text_offset_counts_characters_of_the_text(server):
    emoji = "😀a"
    places, text = offsets(server, emoji, echo=True)
    assert places == [0, 0, 0, 0, 1, 2, 3] and text.startswith(emoji)
    places, _ = offsets(server, list(emoji.encode()), echo=True)
    assert places == [0, 0, 0, 0, 1, 2, 3]
    places, text = offsets(server, [USER, *b"hi"], echo=True)  # a special token that isn't shown
    assert places == [0, 0, 1, 2, 3] and text.startswith("hi")
    places, text = offsets(server, [USER, *b"hi"], echo=True, skip_special_tokens=False)
    assert places == [0, 8, 9, 10, 11] and text.startswith("<|user|>hi")
    places, text = offsets(server, "<|user|>hi", echo=True)  # as it was sent
    assert places == [0, 8, 9, 10, 11] and text.startswith("<|user|>hi")
    assert offsets(server, emoji)[0] == [0, 1]  # without the prompt


def test_text_offset_of_what_ended_the_text(server):
    text = expected_text(b"hello", 30)
    stop = text[7:10]
    cut = text.index(stop)
    places, shown = offsets(server, "hello", max_tokens=30, stop=stop)
    assert shown == text[:cut]
    assert places == [*range(cut + 3)]
    places, shown = offsets(server, "hello", max_tokens=30, stop_token_ids=[ord(text[6])])
    assert places == [*range(len(shown) + 1)]


@pytest.mark.parametrize("stop", [None, "zzzz"])
def test_text_offset_is_the_same_in_a_stream(server, stop):
    body = {"prompt": "😀a", "max_tokens": 9, "logprobs": 1, "echo": True, "stop": stop}
    whole = server.complete(**body)["choices"][0]["logprobs"]
    chunks = stream(server, "/v1/completions", **body)
    for name, values in whole.items():
        parts = [chunk["choices"][0]["logprobs"][name] for chunk in chunks]
        assert [value for part in parts for value in part] == values


# ------------------------------------------------------------------------ which tokens, which names


def test_which_side_a_prompt_is_truncated_from(server):
    eight = [1, 2, 3, 4, 5, 6, 7, 8]
    for side, kept in (("right", [1, 2, 3, 4]), ("left", [5, 6, 7, 8]), (None, [5, 6, 7, 8])):
        choice = server.complete(
            eight,
            truncate_prompt_tokens=4,
            truncation_side=side,
            return_token_ids=True,
            max_tokens=1,
        )["choices"][0]
        assert choice["prompt_token_ids"] == kept
    error = server.refusal(prompt="a", truncate_prompt_tokens=4, truncation_side="middle")
    assert error["param"] == "truncation_side"
    for number in (0, -2):
        error = server.refusal(prompt="a", truncate_prompt_tokens=number)
        assert error["param"] == "truncate_prompt_tokens"


def test_a_prompt_is_cut_to_what_fits(server):
    for fields, kept in (({"max_tokens": 5}, 511), ({"max_tokens": 0, "echo": True}, 512)):
        answer = server.complete([65] * 600, truncate_prompt_tokens=-1, **fields)
        assert answer["usage"]["prompt_tokens"] == kept
    answer = server.complete([65] * 9, truncate_prompt_tokens=-1, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == 9


def test_tokens_by_their_ids(server):
    fields = {"logprobs": 2, "return_tokens_as_token_ids": True, "max_tokens": 2, "echo": True}
    choice = server.complete([5, 6], return_token_ids=True, **fields)["choices"][0]
    names = [f"token_id:{i}" for i in [5, 6, *choice["token_ids"]]]
    assert choice["logprobs"]["tokens"] == names
    for name, top in zip(names[1:], choice["logprobs"]["top_logprobs"][1:]):
        assert name in top and all(key.startswith("token_id:") for key in top)
    body = {"messages": HI, "max_tokens": 1, "logprobs": True, "top_logprobs": 2}
    answer = server.http.post(
        "/v1/chat/completions", json={**body, "return_tokens_as_token_ids": True}
    ).json()
    entry = answer["choices"][0]["logprobs"]["content"][0]
    assert entry["token"] == f"token_id:{entry['bytes'][0]}" == entry["top_logprobs"][0]["token"]


def test_log_probabilities_of_tokens_by_name(server):
    fields = {"max_tokens": 2, "logprobs": 5, "return_tokens_as_token_ids": True}
    choice = server.complete("a", logprob_token_ids=[90, 7], **fields)["choices"][0]
    for token, top in zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]):
        assert list(top) == ["token_id:90", "token_id:7", token]
        assert top["token_id:90"] == -90.0 and top["token_id:7"] == -7.0
    body = {"messages": HI, "max_tokens": 1, "logprobs": True, "logprob_token_ids": [66]}
    answer = server.http.post("/v1/chat/completions", json=body).json()
    top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert [(entry["token"], entry["logprob"]) for entry in top] == [("B", -66.0)]


@pytest.mark.parametrize(
    "fields",
    [
        {"logprob_token_ids": [5]},  # without logprobs
        {"logprob_token_ids": [5, 261], "logprobs": 0},
        {"logprob_token_ids": [-1], "logprobs": 0},
        {"logprob_token_ids": [5] * 129, "logprobs": 0},
        {"logprob_token_ids": 5, "logprobs": 0},
    ],
)
def test_tokens_by_name_that_cannot_be(server, fields):
    error = server.refusal(prompt="a", **fields)
    assert error["param"].partition(".")[0] == "logprob_token_ids"


def test_the_whole_vocabulary(run_server):
    with run_server(max_logprobs=-1) as generous:
        choice = generous.complete("a", max_tokens=1, logprobs=-1, prompt_logprobs=-1)
        choice = choice["choices"][0]
        assert len(choice["logprobs"]["top_logprobs"][0]) == VOCAB_SIZE
        body = {"messages": HI, "max_tokens": 1, "logprobs": True, "top_logprobs": -1}
        answer = generous.http.post("/v1/chat/completions", json=body).json()
        content = answer["choices"][0]["logprobs"]["content"]
        assert len(content[0]["top_logprobs"]) == VOCAB_SIZE


@pytest.mark.parametrize("number", [-1, 21, 10**9])
def test_more_candidates_than_the_engine_gives(server, number):
    for name in ("logprobs", "prompt_logprobs"):
        error = server.refusal(prompt="a", **{name: number})
        assert error["param"] == name and "--max-logprobs" in error["message"]
    body = {"messages": HI, "logprobs": True, "top_logprobs": number}
    error = server.refusal("/v1/chat/completions", **body)
    assert error["param"] == "top_logprobs" and "at most 20" in error["message"]


# ------------------------------------------------------------------------------ many of them


def test_what_choices_share_is_made_once(server, monkeypatch):
    """The prompt's log-probabilities are converted and encoded once for all choices."""
    made = []
    real = completions.prompt_logprobs_json
    monkeypatch.setattr(
        completions, "prompt_logprobs_json", lambda of: made.append(len(of)) or real(of)
    )
    for more in ({}, {"stream": True}):
        fields = {"prompt": "ab" * 100, "n": 16, "prompt_logprobs": 20, "max_tokens": 2, **more}
        if more:
            chunks = stream(server, "/v1/completions", **fields)
            told = [c["choices"][0].get("prompt_logprobs") for c in chunks if c["choices"]]
            told = [each for each in told if each]
        else:
            told = [c["prompt_logprobs"] for c in server.complete(**fields)["choices"]]
        assert len(told) == 16 and all(each == told[0] for each in told) and told[0][0] is None
        assert [len(each) for each in told[0][1:]] == [20] * 199
    assert made == [200, 200]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["ab" * 250] * 8, "n": 128, "prompt_logprobs": 20}, "prompt_logprobs"),
        ({"prompt": ["ab" * 250] * 8, "n": 128, "logprobs": 20, "echo": True}, "prompt_logprobs"),
        ({"prompt": ["a"] * 8, "n": 128, "logprobs": 20, "max_tokens": 500}, "logprobs"),
    ],
)
def test_too_many_log_probabilities_are_refused(server, fields, param):
    error = server.refusal(**{"max_tokens": 1, **fields})
    assert error["param"] == param and "at most 2,097,152" in error["message"], error
    assert "n or max_tokens" in error["message"]
    server.wait_until_idle()


def test_as_many_as_one_long_answer_may_have_are_always_given():
    limits = Limits(max_model_len=131_072)
    params = SamplingParams(max_tokens=None, logprobs=20)
    request = CoreRequest(request_id="r", prompt_token_ids=[1], params=params)
    limits.check_logprobs([request], "logprobs", 1)
    with pytest.raises(ApiError, match=r"5,504,\d{3} log-probabilities, 0 of them the prompt's"):
        limits.check_logprobs([request, request], "top_logprobs", 1)


def test_the_words_of_several_prompts_are_tokenized_once(server, monkeypatch):
    asked = []
    real = Tokenizer.bad_words
    monkeypatch.setattr(
        Tokenizer, "bad_words", lambda self, words: asked.append(len(words)) or real(self, words)
    )
    words = [f"word{i}" for i in range(100)]
    server.complete(["a"] * 16, max_tokens=2, bad_words=words)
    assert asked == [100]
    error = server.refusal(prompt=["a"] * 600, allowed_token_ids=[1] * 200, bad_words=words * 3)
    assert error["param"] == "bad_words" and "300 entries for 600 prompts" in error["message"]


def test_the_record_says_why_the_other_prompts_were_refused(server):
    server.refusal(prompt=["fine", "a" * 600], max_tokens=1, request_id="both")
    lines = server.http.get("/trace?request_id=cmpl-both").text.splitlines()
    whys = [e["why"] for e in map(json.loads, lines) if e["kind"] == "request.refused"]
    assert len(whys) == 2 and all("600 tokens" in why for why in whys), whys
