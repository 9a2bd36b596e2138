"""Chat templates over HTTP: a request's own only if the server allows it, and all within limits."""

from __future__ import annotations

import threading
import time

import pytest

from engine.server.answering import rendering
from engine.text.chat_template import ChatTemplate
from tests.server.tiny_tokenizer import CHAT_TEMPLATE

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def trusting(run_server):
    with run_server(trust_request_chat_template=True) as running:
        yield running


@pytest.mark.parametrize("route", [CHAT, "/tokenize"])
def test_a_template_of_the_request_is_off(server, route):
    error = server.refusal(route, messages=HI, chat_template="{{ messages[0].content }}")
    assert error["param"] == "chat_template"
    assert "--trust-request-chat-template" in error["message"]


def test_a_template_and_its_variables_of_the_request(trusting):
    body = {
        "messages": HI, "max_tokens": 1, "return_token_ids": True,
        "chat_template": "{{ greeting }} {{ messages[0].content }}",
        "chat_template_kwargs": {"greeting": "Oh,"},
    }  # fmt: skip
    answer = trusting.http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert bytes(answer.json()["prompt_token_ids"]) == b"Oh, hi"


def test_a_half_character_that_a_template_writes_is_mended(trusting):
    body = {"messages": HI, "chat_template": r"{{ '\ud83d' }}"}
    assert bytes(trusting.http.post("/tokenize", json=body).json()["tokens"]).decode() == "\ufffd"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% set x = 7**20000000 %}a", "** is not allowed"),
        ("{{ ('a'*2000000000)|length }}", "repetition"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}a", "2 s"),
        ("{% for i in range(99999) %}aaa{% endfor %}", "65,536 characters"),
    ],
)
def test_hostile_templates_are_refused(trusting, template, words):
    assert words in trusting.refusal(CHAT, messages=HI, chat_template=template)["message"]


def test_the_models_template_has_a_time_too(run_server, monkeypatch):
    """Squares of the number of messages: it is stopped, and others go on meanwhile."""
    monkeypatch.setattr(rendering, "RENDER_S", 0.3)
    slow = "{% for a in messages %}{% for b in messages %}{% endfor %}{% endfor %}" + CHAT_TEMPLATE
    with run_server(chat_template=slow) as server:
        refusals = []
        hostile = threading.Thread(
            target=lambda: refusals.append(server.refusal(CHAT, messages=HI * 8_000))
        )
        hostile.start()
        longest, last = 0.0, time.monotonic()
        while hostile.is_alive():
            answer = server.http.post(CHAT, json={"messages": HI, "max_tokens": 1})
            assert answer.status_code == 200
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        hostile.join()
        assert "0.3 s" in refusals[0]["message"] and longest < 5
        assert server.http.post(CHAT, json={"messages": HI, "max_tokens": 1}).status_code == 200


def test_a_prompt_that_a_template_makes_too_long(run_server):
    with run_server(chat_template="{{ 'a' * 70000 }}") as server:
        for route in (CHAT, "/tokenize"):
            error = server.refusal(route, messages=HI)
            assert error["param"] == "messages" and "65,536" in error["message"]


def test_only_a_quick_template_renders_short_conversations_on_the_loop(run_server, monkeypatch):
    threads = []
    real = ChatTemplate.render

    def render(self, *args, **options):
        threads.append(threading.current_thread().name.rpartition("_")[0])
        return real(self, *args, **options)

    long = [{"role": "user", "content": "a" * 300}] * 3 + HI * 14
    with run_server() as server:
        monkeypatch.setattr(ChatTemplate, "render", render)  # after the start, which renders too
        monkeypatch.setattr(rendering, "QUICK_S", 10.0)
        for messages in (HI, HI, long, HI):
            server.http.post("/tokenize", json={"messages": messages})
        server.http.post("/tokenize", json={"messages": HI, "chat_template_kwargs": {"x": 1}})
        assert threads == ["short text", "", "short text", "", "short text"]
        monkeypatch.setattr(rendering, "QUICK_S", 0.0)  # none is as quick as that
        for _ in range(2):
            server.http.post("/tokenize", json={"messages": HI})
        assert threads[5:] == ["short text"] * 2
