"""The model's sampling defaults over HTTP: they hold where a request says nothing."""

from __future__ import annotations

import json

import pytest

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def recommending(run_server):
    """A server whose model recommends."""
    override = {"temperature": 0, "top_k": 7, "max_new_tokens": 3}
    with run_server(override_generation_config=override) as running:
        yield running


def params_of(server, answer) -> dict:
    """What a request's parameters were in the end, as its record says."""
    lines = server.http.get("/trace", params={"request_id": answer["id"]}).text.splitlines()
    events = [json.loads(line) for line in lines]
    [received] = [event for event in events if event["kind"] == "request.received"]
    return received["params"]


def test_they_hold_where_a_request_says_nothing(recommending):
    answer = recommending.complete("abc")
    assert answer["usage"]["completion_tokens"] == 3
    params = params_of(recommending, answer)
    assert (params["temperature"], params["top_k"], params["max_tokens"]) == (0, 7, 3)
    chat = recommending.http.post("/v1/chat/completions", json={"messages": HI}).json()
    assert chat["usage"]["completion_tokens"] == 3
    nothing = recommending.complete("abc", temperature=None, max_tokens=None)
    assert params_of(recommending, nothing) == params


def test_what_a_request_says_wins(recommending):
    answer = recommending.complete("abc", temperature=0.5, top_k=-1, max_tokens=5)
    assert answer["usage"]["completion_tokens"] == 5
    params = params_of(recommending, answer)
    assert params["temperature"] == 0.5 and "top_k" not in params
    body = {"messages": HI, "max_completion_tokens": 4}
    chat = recommending.http.post("/v1/chat/completions", json=body).json()
    assert chat["usage"]["completion_tokens"] == 4


def test_a_server_whose_model_recommends_nothing(server):
    params = params_of(server, server.complete("abc", max_tokens=2))
    assert params == {"max_tokens": 2}


def test_a_default_that_can_not_be_used_ends_the_start(run_server):
    with run_server(wait=False, override_generation_config={"top_p": 7}) as server:
        server.wait("failed")
        assert "top_p is 7" in server.http.get("/health").json()["detail"]
