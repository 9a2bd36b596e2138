"""Calls of tools and reasoning over HTTP: what the model writes is a script in its prompt."""

from __future__ import annotations

import json

import openai
import pytest

from tests.server.scripted_engine import TOOLS_TEMPLATE, load_scripted

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Say the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich 🌧"}}\n</tool_call>'
ARGUMENTS = {"city": "Zürich 🌧"}


@pytest.fixture(scope="module")
def server(run_server):
    with run_server(load_scripted, chat_template=TOOLS_TEMPLATE) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def say(text):
    return [{"role": "user", "content": f"SAY:{text}"}]


def whole(server, text, **fields):
    body = {"messages": say(text), "tools": [TOOL], **fields}
    answer = server.http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def streamed(client, text, **fields):
    """The message and finish reason that openai's own helper makes of a stream."""
    arguments = {"tools": [TOOL], **fields}
    with client.chat.completions.stream(model="tiny", messages=say(text), **arguments) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().choices[0]


def test_a_call_is_told_apart(server):
    choice = whole(server, f"Let me see.\n{CALL}")
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls"
    assert message["content"] == "Let me see."
    (call,) = message["tool_calls"]
    assert call["type"] == "function" and call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS


def test_a_stream_says_the_same(server, client):
    for text in (f"Let me see.\n{CALL}", f"{CALL}\n{CALL}", "Just text < and <tool.", CALL[:40]):
        said, message = streamed(client, text), whole(server, text)["message"]
        assert (said.message.content or None) == (message["content"] or None)
        calls = [(c.function.name, c.function.arguments) for c in said.message.tool_calls or ()]
        assert calls == [
            (c["function"]["name"], c["function"]["arguments"])
            for c in message.get("tool_calls", ())
        ]
        assert (said.finish_reason == "tool_calls") == bool(calls)


def test_reasoning_is_told_apart(server, client):
    text = "<think>\nIt rains.\n</think>\n\nTake an umbrella."
    message = whole(server, text)["message"]
    assert message["reasoning_content"] == message["reasoning"] == "It rains."
    assert message["content"] == "Take an umbrella."
    inside = {"chat_template_kwargs": {"enable_thinking": True}}
    body = {"messages": say("It rains.</think>Go."), **inside}
    answer = server.http.post(CHAT, json=body).json()
    assert answer["choices"][0]["message"]["reasoning_content"] == "It rains."
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": len("It rains.")}
    cut = server.http.post(CHAT, json={**body, "max_tokens": 4}).json()["choices"][0]
    assert cut["finish_reason"] == "length"
    assert cut["message"] == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "It r",
        "reasoning": "It r",
    }


def test_one_call_ends_the_answer(server, client):
    choice = whole(server, CALL + CALL, parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    said = streamed(client, CALL + CALL, parallel_tool_calls=False)
    assert len(said.message.tool_calls) == 1 and said.finish_reason == "tool_calls"


def test_tool_choice_none_leaves_tools_out(server):
    choice = whole(server, CALL, tool_choice="none")
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"
    body = {"messages": say("x"), "tools": [TOOL]}
    counts = [
        server.http.post("/tokenize", json={**body, **more}).json()["count"]
        for more in ({}, {"tool_choice": "none"}, {"tools": None})
    ]
    assert counts[0] > counts[1] == counts[2]
