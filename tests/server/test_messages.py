"""Anthropic's Messages API over HTTP: bodies, blocks, events in their order, and failures."""

from __future__ import annotations

import os
import signal
import time

import httpx
import pytest

from tests.server.newer_apis import parsed, prompt_of
from tests.server.tiny_tokenizer import ASSISTANT, END, SYSTEM, USER

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HI = [{"role": "user", "content": "hi"}]
TEXT = {"type": "text", "text": "hi"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "clock", "input": {"zone": "CET"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}


def message(server, messages=HI, **fields):
    body = {"model": "tiny", "max_tokens": 6, "messages": messages, **fields}
    answer = server.http.post(MESSAGES, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(server, messages=HI, **fields):
    """The events of a stream: (name, data)s."""
    body = {"max_tokens": 6, "messages": messages, "stream": True, **fields}
    answer = server.http.post(MESSAGES, json=body)
    assert answer.status_code == 200, answer.text
    return parsed(answer.text)


def refused(server, route=MESSAGES, status=400, **fields):
    answer = server.http.post(route, json={"messages": HI, "max_tokens": 6, **fields})
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["type"] == "error" and body["request_id"] == answer.headers["request-id"]
    return body["error"]


def prompt(server, messages, **fields):
    """The prompt that messages become."""
    return prompt_of(
        server, lambda name: message(server, messages, request_id=name, **fields), "msg_"
    )


# ------------------------------------------------------------------------------------- the answer


def test_a_message_is_the_chats_answer(server):
    """Nothing is generated in another way: the text is that of the same chat."""
    made = message(server, seed=1)
    chat = {"messages": HI, "max_tokens": 6, "seed": 1}
    same = server.http.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]
    assert made["content"] == [{"type": "text", "text": same["content"]}]
    assert made["type"] == "message" and made["role"] == "assistant"
    assert made["id"].startswith("msg_") and made["model"] == "tiny"
    assert made["stop_reason"] == "max_tokens" and made["stop_sequence"] is None
    assert made["usage"]["input_tokens"] == 5 and made["usage"]["output_tokens"] == 6


def test_the_events_have_their_order_and_are_the_whole_message(server):
    got = events(server)
    names = [name for name, _ in got]
    deltas = names.count("content_block_delta")
    assert deltas > 1
    assert names == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(data["type"] == name for name, data in got)
    first, last = got[0][1]["message"], got[-2][1]
    assert first["content"] == [] and first["stop_reason"] is None
    assert got[1][1]["content_block"] == {"type": "text", "text": ""}
    text = "".join(data["delta"]["text"] for name, data in got if name == "content_block_delta")
    whole = message(server)
    assert [{"type": "text", "text": text}] == whole["content"]
    assert last["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 6
    told = {name: first["usage"][name] for name in ("input_tokens", "cache_read_input_tokens")}
    assert sum(told.values()) == 5


def test_cached_tokens_are_not_input_tokens(server):
    long = [{"role": "user", "content": "a story of many blocks " * 6}]
    usages = [message(server, long)["usage"] for _ in range(2)]
    sums = [usage["input_tokens"] + usage["cache_read_input_tokens"] for usage in usages]
    assert sums[0] == sums[1] and usages[1]["cache_read_input_tokens"] >= 128
    assert events(server, long)[0][1]["message"]["usage"] == {**usages[1], "output_tokens": 1}


def test_why_a_message_ended(server):
    text = message(server, max_tokens=20)["content"][0]["text"]
    stopped = message(server, max_tokens=20, stop_sequences=[text[4:7]])
    assert stopped["stop_reason"] == "stop_sequence" and stopped["stop_sequence"] == text[4:7]
    assert stopped["content"][0]["text"] == text[:4]
    *_, (_, delta), _stop = events(server, max_tokens=20, stop_sequences=[text[4:7]])
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": text[4:7]}
    full = message(server, max_tokens=4_000)
    assert full["stop_reason"] == "model_context_window_exceeded"


def test_an_answer_without_text_has_no_block(server):
    text = message(server)["content"][0]["text"]
    assert message(server, stop_sequences=[text[0]])["content"] == []
    names = [name for name, _ in events(server, stop_sequences=[text[0]])]
    assert names == ["message_start", "message_delta", "message_stop"]


# -------------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize(
    ("messages", "system", "rendered"),
    [
        (HI, None, [USER, *b"hi", END, ASSISTANT]),
        (HI, "be", [SYSTEM, *b"be", END, USER, *b"hi", END, ASSISTANT]),
        (HI, [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}},
              {"type": "text", "text": "so"}], [SYSTEM, *b"be\n\nso", END, USER, *b"hi", END,
                                                ASSISTANT]),
        ([{"role": "user", "content": [TEXT, TEXT]}], None, [USER, *b"hi\nhi", END, ASSISTANT]),
        ([{"role": "system", "content": "be"}, *HI], None,
         [SYSTEM, *b"be", END, USER, *b"hi", END, ASSISTANT]),
        ([*HI, {"role": "assistant", "content": "Well"}], None,
         [USER, *b"hi", END, ASSISTANT, *b"Well"]),
        ([*HI, {"role": "assistant", "content": [{"type": "text", "text": "We"},
                                                 {"type": "text", "text": "ll"}]}], None,
         [USER, *b"hi", END, ASSISTANT, *b"Well"]),
        ([*HI, {"role": "assistant", "content": ""}, {"role": "assistant", "content": []}], None,
         [USER, *b"hi", END, ASSISTANT]),
        ([*HI, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, TEXT]},
          *HI], None, [USER, *b"hi", END, ASSISTANT, *b"hi", END, USER, *b"hi", END, ASSISTANT]),
    ],
)  # fmt: skip
def test_what_the_model_reads(server, messages, system, rendered):
    told = prompt(server, messages, system=system)
    tokens = server.http.post("/tokenize", json={"prompt": told["text"]}).json()["tokens"]
    assert tokens == rendered
    assert told["route"] == MESSAGES and "ignored" not in told
    counted = server.http.post(COUNT, json={"messages": messages, "system": system})
    assert counted.json() == {"input_tokens": len(rendered)}


def test_the_billing_block_is_left_out_and_recorded(server):
    header = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=1234;"}
    told = prompt(server, HI, system=[header, {"type": "text", "text": "be"}])
    assert "billing" not in told["text"] and "be" in told["text"]
    assert told["ignored"] == ["system.0 (x-anthropic-billing-header)"]


TOOLS_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}|{{ m.name }}"
    "{% for c in m.tool_calls or [] %}|{{ c.function.name }}:{{ c.function.arguments.zone }}"
    "{% endfor %}]{% endfor %}{{ enable_thinking }}/{{ reasoning_effort }}"
)


@pytest.fixture(scope="module")
def with_calls(run_server):
    with run_server(chat_template=TOOLS_TEMPLATE) as running:
        yield running


def test_calls_and_their_results_come_before_the_text_beside_them(with_calls):
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    messages = [
        *HI,
        {"role": "assistant", "content": [thought, TEXT, CALL]},
        {"role": "user", "content": [
            {"type": "text", "text": "and?"},
            {**RESULT, "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "h"}]},
        ]},
    ]  # fmt: skip
    told = prompt(with_calls, messages)["text"]
    assert told == "[user|hi||][assistant|hi|Hm.||clock:CET][tool|12\nh||clock][user|and?||]/"
    for content in ("12", None):
        messages[2]["content"][1] = {**RESULT, "content": content, "is_error": True}
        assert f"[tool|{content or ''}||clock]" in prompt(with_calls, messages)["text"]


def test_thinking_and_effort_are_variables_of_the_template(with_calls):
    for fields, rendered in (
        ({"thinking": {"type": "disabled"}}, "False/"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "True/"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, "True/low"),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "False/low"),
    ):
        assert prompt(with_calls, [*HI], **fields)["text"].endswith("]" + rendered)


# ---------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": "hi"}, "messages: "),
        ({"messages": ["hi"]}, "messages.0: "),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role is 'tool'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content must be"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0 must be"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content.0.text must"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]},
         "messages.0.content.0 is of type 'image'"),
        ({"messages": [{"role": "assistant", "content": [TEXT, {"type": "server_tool_use"}]}]},
         "messages.0.content.1 is of type 'server_tool_use'"),
        ({"messages": [*HI, {"role": "assistant", "content": [CALL]}]}, "messages.1 calls tools"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{**CALL, "input": "{}"}]}, *HI]},
         "messages.0.content.0.input must be an object"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "messages has no text"),
        ({"system": [{"type": "image"}]}, "system.0 is of type 'image'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": None}, "max_tokens: this field is required"),
        ({"temperature": -1}, "temperature is -1"),
        ({"stop_sequences": ["s"] * 65}, "stop_sequences "),
        ({"stop_sequences": [""]}, "stop_sequences contains"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens is 5"),
        ({"thinking": {"type": "often"}}, "thinking.type: "),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "x"}}}},
         "output_config.format: "),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config.format.type: "),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0 is of type 'bash_2025"),
        ({"tools": [{"type": "custom"}]}, "tools.0.name must be"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "tool"}}, "tool_choice.name: "),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type: "),
        ({"mcp_servers": [{"name": "a"}]}, "mcp_servers is not supported"),
        ({"container": "a"}, "container is not supported"),
        ({"system": "a" * 600}, "the prompt has 607 tokens"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_served_is_named(server, fields, words, stream):
    error = refused(server, **{"stream": stream, **fields})
    assert error["type"] == "invalid_request_error" and words in error["message"]
    assert "messages.1.content" not in error["message"] or "messages.1" in words


def test_a_message_that_the_template_has_no_place_for_is_named_by_its_own_place(server):
    messages = [
        {"role": "assistant", "content": [CALL]},
        {"role": "user", "content": [{**RESULT, "content": "12"}]},
    ]
    error = refused(server, messages=messages, system="so that places differ")
    assert error["message"].startswith("messages.0.tool_calls would be lost")


def test_threads_are_refused_in_the_form_that_the_client_understands(server):
    error = refused(server, thread={"type": "create"})
    assert error["type"] == "invalid_request_error"
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


def test_other_failures_have_that_shape_too(run_server, server):
    assert refused(server, status=404, model="other")["type"] == "not_found_error"
    for content in (b"{", b"[1]", b"\xff", b""):
        headers = {"Content-Type": "application/json"}
        answer = server.http.post(MESSAGES, content=content, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
    answer = server.http.post(MESSAGES, content=b" " * (16 * 2**20 + 1))
    assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
    answer = server.http.get(MESSAGES)
    assert answer.status_code == 405 and answer.json()["type"] == "error"
    with run_server(api_key="secret", max_num_queued_reqs=1, max_num_seqs=1, step_s=0.02) as busy:
        for headers, status in (
            ({"x-api-key": "secret", "anthropic-version": "2023-06-01"}, 200),
            ({"Authorization": "Bearer secret", "anthropic-beta": "anything"}, 200),
            ({"Authorization": "Bearer other", "x-api-key": "secret"}, 200),
            ({"x-api-key": "other"}, 401),
            ({"x-api-key": ""}, 401),
            ({}, 401),
        ):
            answer = httpx.post(busy.url + COUNT, json={"messages": HI}, headers=headers)
            assert answer.status_code == status
            if status == 401:
                assert answer.json()["error"]["type"] == "authentication_error"
        body = {"messages": HI, "max_tokens": 400, "stream": True}
        with busy.http.stream("POST", MESSAGES, json=body):
            time.sleep(0.1)
            with busy.http.stream("POST", MESSAGES, json=body):  # this one waits
                time.sleep(0.1)
                error = refused(busy, status=503)
        assert error["type"] == "overloaded_error" and "wait already" in error["message"]


def test_a_failure_in_a_stream_is_an_event(run_server):
    with run_server(step_s=0.05) as doomed:
        body = {"messages": HI, "max_tokens": 400, "stream": True}
        with doomed.http.stream("POST", MESSAGES, json=body) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            os.kill(doomed.service.client.pid, signal.SIGKILL)
            text += "".join(pieces)
        name, data = parsed(text)[-1]
        assert name == "error" and data["type"] == "error"
        assert data["error"]["type"] in ("api_error", "overloaded_error")
        assert data["error"]["message"] and data["request_id"] == answer.headers["request-id"]


def test_heartbeats_before_the_first_event(run_server):
    with run_server(step_s=0.4, heartbeat_s=0.1) as slow:
        text = slow.http.post(MESSAGES, json={"messages": HI, "max_tokens": 1, "stream": True}).text
        assert text.startswith(": waiting\n\n")
        assert parsed(text)[0][0] == "message_start"


def test_models_are_listed_for_clients_of_both_apis(server):
    models = server.http.get("/v1/models").json()
    assert models["has_more"] is False
    assert models["first_id"] == models["last_id"] == models["data"][0]["id"]
    assert models["data"][0]["type"] == models["data"][0]["object"] == "model"
    headers = {"anthropic-version": "2026-10-21"}
    missing = server.http.get("/v1/models/other", headers=headers)
    assert missing.json()["error"]["type"] == "not_found_error"
    assert missing.json()["request_id"] == missing.headers["request-id"]
    assert server.http.get("/v1/models/other").json()["error"]["code"] == 404
