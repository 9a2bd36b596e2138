from __future__ import annotations

import json
import time

import pytest

from tests.server.fake_engine import expected_text


def test_a_completion_is_whole(server):
    answer = server.complete("hello", max_tokens=8, model="tiny", seed=1)
    choice = answer["choices"][0]
    assert choice["text"] == expected_text(b"hello", 8)
    assert choice["finish_reason"] == "length" and choice["stop_reason"] is None
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_the_default_length_is_16(server):
    assert server.complete("hello")["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("one", [b"one"]),
        (["one", "two"], [b"one", b"two"]),
        (list(b"one"), [b"one"]),
        ([list(b"one"), list(b"two")], [b"one", b"two"]),
    ],
)
def test_every_form_of_prompt(server, prompt, texts):
    choices = server.complete(prompt, max_tokens=5)["choices"]
    assert [choice["text"] for choice in choices] == [expected_text(text, 5) for text in texts]
    assert [choice["index"] for choice in choices] == list(range(len(texts)))


def test_n_answers_to_each_prompt_are_numbered_prompt_times_n_plus_i(server):
    answer = server.complete(["one", "two"], n=3, max_tokens=4)
    by_index = {choice["index"]: choice["text"] for choice in answer["choices"]}
    first, second = expected_text(b"one", 4), expected_text(b"two", 4)
    assert by_index == {0: first, 1: first, 2: first, 3: second, 4: second, 5: second}
    assert answer["usage"]["completion_tokens"] == 24 and answer["usage"]["prompt_tokens"] == 6


def test_cached_tokens_are_told(server):
    prompt = "cached tokens are told " * 4
    server.complete(prompt, max_tokens=1, cache_salt="cached")
    again = server.complete(prompt, max_tokens=1, cache_salt="cached")
    other = server.complete(prompt, max_tokens=1, cache_salt="another")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 80
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_stop_string(server):
    text = expected_text(b"hello", 30)
    stop = text[7:10]
    cut = text.index(stop)
    choice = server.complete("hello", max_tokens=30, stop=stop)["choices"][0]
    assert choice["text"] == text[:cut]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == stop
    choice = server.complete("hello", max_tokens=30, stop=[stop], include_stop_str_in_output=True)
    assert choice["choices"][0]["text"] == text[:cut] + stop
    server.wait_until_idle()


def test_stop_token_is_named(server):
    text = expected_text(b"hello", 30)
    choice = server.complete("hello", max_tokens=30, stop_token_ids=[ord(text[6])])["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["stop_reason"] == ord(text[6])


def test_echo(server):
    choice = server.complete("hello", max_tokens=3, echo=True)["choices"][0]
    assert choice["text"] == "hello" + expected_text(b"hello", 3)
    choice = server.complete(list(b"hello"), max_tokens=3, echo=True)["choices"][0]
    assert choice["text"] == "hello" + expected_text(b"hello", 3)


def test_only_the_prompt(server):
    answer = server.complete("hello", max_tokens=0, echo=True, logprobs=1)
    choice = answer["choices"][0]
    assert choice["text"] == "hello" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == list("hello")
    assert answer["usage"]["completion_tokens"] == 0
    assert server.refusal(prompt="hello", max_tokens=0)["param"] == "max_tokens"


def test_logprobs_of_prompt_and_answer(server):
    choice = server.complete("hello", max_tokens=1, echo=True, logprobs=2)["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
        assert len(top) == 2
        assert value == max(top.values())  # to the last bit: lm-eval asks for that


def test_logprobs_zero_shows_the_chosen_token(server):
    logprobs = server.complete("hello", max_tokens=2, logprobs=0)["choices"][0]["logprobs"]
    for token, value, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
    ):
        assert top == {token: value}


def test_prompt_logprobs(server):
    choice = server.complete("hello", max_tokens=1, prompt_logprobs=3)["choices"][0]
    first, *rest = choice["prompt_logprobs"]
    assert first is None and len(rest) == 4
    for letter, position in zip("ello", rest):
        assert position[str(ord(letter))]["rank"] == 1
        assert position[str(ord(letter))]["decoded_token"] == letter
        assert len(position) == 3


def test_token_ids_on_request(server):
    choice = server.complete("hello", max_tokens=4, return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == list(b"hello")
    assert bytes(choice["token_ids"]).decode() == choice["text"]


def test_truncated_prompt_is_echoed_as_it_was_used(server):
    answer = server.complete("hello", max_tokens=1, truncate_prompt_tokens=3, echo=True)
    assert answer["choices"][0]["text"] == "llo" + expected_text(b"llo", 1)
    assert answer["usage"]["prompt_tokens"] == 3


def test_more_tokens_than_fit_are_clamped(server):
    answer = server.complete("a" * 500, max_tokens=100)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 512


def test_request_id_is_the_callers(server):
    answer = server.http.post(
        "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "mine-1"}
    )
    assert answer.json()["id"] == "cmpl-mine-1" and answer.headers["x-request-id"] == "mine-1"
    assert server.complete("a", max_tokens=1, request_id="mine-2")["id"] == "cmpl-mine-2"
    strange = server.http.post(
        "/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-Request-Id": "a.b c"}
    )
    assert strange.status_code == 200 and "." not in strange.json()["id"]


def test_model_is_optional_and_checked(server):
    assert server.complete("a", max_tokens=1)["model"] == "tiny"
    error = server.refusal(status=404, prompt="a", model="gpt-5")
    assert error["type"] == "NotFoundError" and error["param"] == "model"


def test_full_record_of_one_request(server):
    server.complete("a", max_tokens=2, request_id="fully", trace="full", stop=["zzzz"])
    server.complete("a", max_tokens=2, request_id="briefly")
    both = {"request.received", "request.tokenized", "request.queued", "request.finished"}
    fully, briefly = set(), set()
    deadline = time.monotonic() + 5
    while not (both <= fully and both <= briefly):  # the engine's events come 50 ms later
        assert time.monotonic() < deadline, (fully, briefly)
        events = [json.loads(line) for line in server.http.get("/trace").text.splitlines()]
        fully = {e["kind"] for e in events if e.get("request_id") == "cmpl-fully"}
        briefly = {e["kind"] for e in events if e.get("request_id") == "cmpl-briefly"}
    assert "text.emitted" in fully and "text.emitted" not in briefly
