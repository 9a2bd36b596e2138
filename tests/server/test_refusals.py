"""What can't be served is refused with 400, the usual body, and the field's dotted path."""

from __future__ import annotations

import pytest

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]

TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 2, "temperature": 0}, "n"),
        ({"n": 300}, "n"),
        ({"stop": ["s"] * 65}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"65": 101}}, "logit_bias"),
        ({"allowed_token_ids": [261]}, "allowed_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"priority": "high"}, "priority"),
        ({"trace": "all"}, "trace"),
        ({"request_id": "a.b"}, "request_id"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a" * 600}, "prompt"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completion_fields(server, fields, param, stream):
    if "stream_options" in fields and stream:
        return
    error = server.refusal(**{"prompt": "a", "stream": stream, **fields})
    assert error["param"].split(".list")[0] in (param, f"{param}.str")
    assert error["type"] == "BadRequestError" and error["message"]


def test_both_numbers_of_a_prompt_that_is_too_long(server):
    message = server.refusal(prompt="a" * 600)["message"]
    assert "512" in message and "600" in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role"),
        ({"messages": ["hi"]}, "messages.0"),
        ({"messages": [*HI, {"role": "user", "content": 3}]}, "messages.1.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0",
        ),
        ({"messages": [*HI, {"role": "assistant", "tool_calls": [{}]}]}, "messages.1.tool_calls"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"chat_template": "{% if"}, "chat_template"),
        (
            {"add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ({"echo": True}, "echo"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [TOOL]}, "tools"),  # the template has no place for them
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tools": [TOOL] * 300}, "tools"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_chat_fields(server, fields, param):
    assert server.refusal(CHAT, **{"messages": HI, **fields})["param"] == param


def test_missing_fields(server):
    assert server.refusal()["param"] == "prompt"
    assert server.refusal(CHAT)["param"] == "messages"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"text"', b'{"prompt": }', b"\xff"])
def test_bodies_that_are_no_json_object(server, body):
    answer = server.http.post(
        "/v1/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "BadRequestError"


def test_body_without_its_content_type(server):
    answer = server.http.post("/v1/completions", content=b'{"prompt": "a"}')
    if answer.status_code != 200:
        assert "Content-Type" in answer.json()["error"]["message"]


def test_unknown_routes_and_methods(server):
    missing = server.http.get("/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == 404
    wrong = server.http.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.json()["error"]["code"] == 405
    for page in ("/docs", "/redoc"):
        assert server.http.get(page).status_code == 404


def test_unknown_fields_are_accepted_and_named_once(server):
    for _ in range(3):
        server.complete("a", max_tokens=1, colour="blue")
    record = server.http.get("/trace").text
    warnings = [line for line in record.splitlines() if '"engine.warning"' in line]
    assert sum("'colour'" in line for line in warnings) == 1
    assert any('"ignored":["colour"]' in line for line in record.splitlines())


def test_a_request_larger_than_the_cache_is_refused(run_server):
    with run_server(num_blocks=4) as small:
        for stream in (False, True):
            error = small.refusal(prompt="a" * 40, max_tokens=100, stream=stream)
            assert "blocks" in error["message"]
        assert small.complete("a" * 40, max_tokens=8)["usage"]["completion_tokens"] == 8


def test_a_body_that_is_too_large(server):
    large = b'{"prompt": "' + b"a" * (16 * 2**20) + b'"}'
    answer = server.http.post("/v1/completions", content=large)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == 413

    def parts():
        for start in range(0, len(large), 2**20):
            yield large[start : start + 2**20]

    answer = server.http.post(
        "/v1/completions", content=parts(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413 and "16,777,216" in answer.json()["error"]["message"]


def test_a_request_id_that_is_in_use_is_refused(run_server):
    with run_server(step_s=0.02) as slow:
        body = {"prompt": "a", "max_tokens": 300, "stream": True, "request_id": "same"}
        with slow.http.stream("POST", "/v1/completions", json=body):
            for stream in (False, True):
                error = slow.refusal(prompt="b", request_id="same", stream=stream)
                assert error["param"] == "request_id"
            headers = {"X-Request-Id": "same"}  # a proxy's, sent again with a retry
            answer = slow.http.post(
                "/v1/completions", json={"prompt": "b", "max_tokens": 1}, headers=headers
            )
            assert answer.status_code == 200 and answer.json()["id"] != "cmpl-same"
        slow.wait_until_idle()
