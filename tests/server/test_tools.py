"""Calls of tools and reasoning over HTTP: what the model writes is a script in its prompt."""

from __future__ import annotations

import json
import re
import subprocess
import sys

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


@pytest.mark.parametrize("flag", ["tool_call_parser", "reasoning_parser"])
def test_a_name_of_no_format_is_refused(run_server, flag):
    with run_server(load_scripted, wait=False, **{flag: "hermess"}) as doomed:
        doomed.wait("failed")
        detail = doomed.http.get("/health").json()["detail"]
    assert re.match(
        f"--{flag}".replace("_", "-") + " is 'hermess'; choose one of auto, none, ", detail
    )


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


def events_of(server, kind):
    lines = map(json.loads, server.http.get("/trace").text.splitlines())
    return [event for event in lines if event["kind"] == kind]


def test_the_record_says_what_was_called_and_what_could_not_be_read(server):
    (found,) = events_of(server, "engine.formats_found")
    assert (found["calls"], found["reasoning"]) == ("hermes", "think")
    for text, told in (
        (CALL, ["tool.called"]),
        (CALL * 2, ["tool.called"] * 2),
        ("<tool_call>no</tool_call>", ["tool.unreadable"]),
        (CALL[:60], ["tool.unreadable"]),
        ("nothing", []),
    ):
        name = f"r{len(text)}"
        whole(server, text, request_id=name)
        kinds = [
            event["kind"]
            for kind in ("tool.called", "tool.unreadable")
            for event in events_of(server, kind)
            if event["request_id"] == f"chatcmpl-{name}"
        ]
        assert kinds == told, text
    called = events_of(server, "tool.called")[-1]
    assert called["tool"] == "weather" and called["num_chars"] == len('{"city": "Zürich 🌧"}')


def test_a_stream_has_id_type_and_name_once(client):
    text = f"Hm. {CALL}\n{CALL}"
    stream = client.chat.completions.create(
        model="tiny", messages=say(text), tools=[TOOL], stream=True, n=1
    )
    deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [call.index for call in calls] == sorted(call.index for call in calls)
    begun = [call for call in calls if call.id]
    assert [(c.index, c.type, c.function.name, c.function.arguments) for c in begun] == [
        (0, "function", "weather", ""),
        (1, "function", "weather", ""),
    ]
    assert all(c.type is None and c.function.name is None for c in calls if not c.id)
    assert len(calls) > 20  # arguments come in pieces
    for index in (0, 1):
        written = "".join(c.function.arguments for c in calls if c.index == index)
        assert json.loads(written) == ARGUMENTS
    first = next(i for i, delta in enumerate(deltas) if delta.tool_calls)
    assert "".join(delta.content or "" for delta in deltas[:first]) == "Hm."
    assert not any(delta.content for delta in deltas[first:])


@pytest.mark.parametrize(
    ("fields", "reason"), [({"max_tokens": 45}, "length"), ({"stop": "Zür"}, "stop")]
)
def test_a_cut_call_is_not_finished(server, client, fields, reason):
    choice = whole(server, CALL, **fields)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "weather" and choice["finish_reason"] == reason
    arguments = call["function"]["arguments"]
    assert '{"city": "Zürich 🌧"}'.startswith(arguments) and not arguments.endswith("}")
    stream = client.chat.completions.create(
        model="tiny", messages=say(CALL), tools=[TOOL], stream=True, **fields
    )
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    told = [call.function.arguments for c in choices for call in c.delta.tool_calls or ()]
    assert "".join(told) == arguments and choices[-1].finish_reason == reason


def test_an_agents_loop(server, client):
    """Until the model calls no more: each result goes back with the call that asked for it."""
    second = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    results = iter([f"SAY:One more.{second}", "SAY:It rains everywhere."])
    messages, calls = say(CALL), []
    while True:
        answer = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            break
        for call in message.tool_calls:
            calls.append(json.loads(call.function.arguments)["city"])
            messages.append({"role": "tool", "tool_call_id": call.id, "content": next(results)})
    assert message.content == "It rains everywhere." and answer.choices[0].finish_reason == "stop"
    assert calls == ["Zürich 🌧", "Bern"]


def test_each_of_several_answers_is_taken_apart(client):
    stream = client.chat.completions.create(
        model="tiny", messages=say(CALL), tools=[TOOL], stream=True, n=3, temperature=1.0,
        stream_options={"include_usage": True},
    )  # fmt: skip
    written, reasons = ["", "", ""], []
    for chunk in stream:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                written[choice.index] += call.function.arguments
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert [json.loads(one) for one in written] == [ARGUMENTS] * 3 and reasons == ["tool_calls"] * 3


def test_the_client_runs_tools_and_shows_reasoning_apart(server):
    named = '<tool_call>{"name": "calculator", "arguments": {"expression": "%s"}}</tool_call>'
    call, wrong = named % "6 * (3 + 4) / 4", named % "open(1)"
    clock = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    lines = ["/tools", f"SAY:I count.{call}", f"SAY:{wrong}", f"SAY:{clock}", "/tools"]
    lines.append("SAY:<think>It may rain.</think>Go home.")
    ran = subprocess.run(
        [sys.executable, "test_client.py", "--interactive", "--url", server.url],
        input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    said = ran.stdout
    assert ran.returncode == 0, said + ran.stderr
    assert "tools: clock, calculator" in said and "tools: none" in said
    assert '[calculator {"expression": "6 * (3 + 4) / 4"} → 10.5]' in said
    assert "→ error: ValueError: only numbers" in said
    assert re.search(r"\[clock \{\} → \w+, \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]", said)
    assert said.count("\nok") == 3  # what it says to a result
    assert "[it thinks] It may rain.\n\nGo home." in said


def test_reasoning_can_be_left_out(server):
    text = "<think>Hm.</think>Yes."
    message = whole(server, text, include_reasoning=False)["message"]
    assert message == {"role": "assistant", "content": "Yes."}
