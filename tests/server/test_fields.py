"""Every field that a client may know: served, without effect, or refused, and never two of them."""

from __future__ import annotations

import json

import pytest

from engine.server.answering.field import NO_EFFECT, REFUSED, SERVED
from engine.server.answering.fields import BODIES, FIELDS, ROUTES, TABLES
from engine.server.answering.limits import REQUESTS
from tests.server.client_fields import VLLM

CLASSES = {request.kind: request for request in REQUESTS}
HI = [{"role": "user", "content": "hi"}]
TABLE_OF = {body: table for bodies, table in TABLES for body in bodies}
NEEDED = {
    "completions": {"prompt": "a", "max_tokens": 1},
    "chat": {"messages": HI, "max_tokens": 1},
    "tokenize": {"messages": HI},
    "detokenize": {"tokens": [65]},
    "messages": {"messages": HI, "max_tokens": 1},
    "count_tokens": {"messages": HI},
    "responses": {"input": "a", "max_output_tokens": 1},
    "input_tokens": {"input": "a"},
}


def of(verdict):
    return [
        pytest.param(field, body, id=f"{body}-{field.name}")
        for body, table in TABLE_OF.items()
        for field in table
        if field.verdict(body) == verdict
    ]


def told(answer) -> str:
    """What an error is about: the field, where its API has a place for it, or the message."""
    error = answer.json()["error"]
    return error.get("param") or error["message"]


def post(server, body, **fields):
    return server.http.post(ROUTES[body], json={**NEEDED[body], **fields})


@pytest.mark.parametrize(("of_api", "table"), TABLES)
def test_each_field_stands_once_and_is_one_thing_in_a_body(of_api, table):
    names = [field.name for field in table]
    assert len(names) == len(set(names))
    for field in table:
        bodies = f"{field.served} {field.no_effect} {field.refused}".split()
        assert bodies and len(bodies) == len(set(bodies)) and set(bodies) <= set(of_api)
        assert field.refused or not field.passes


def test_each_body_has_a_table_a_class_and_a_route():
    assert set(TABLE_OF) == set(CLASSES) == set(ROUTES) == set(NEEDED)


@pytest.mark.parametrize("body", TABLE_OF)
def test_what_the_table_calls_served_is_what_the_class_declares(body):
    served = {field.name for field in TABLE_OF[body] if field.verdict(body) == SERVED}
    assert served == set(CLASSES[body].model_fields)


@pytest.mark.parametrize("body", BODIES)
def test_no_field_of_vllm_is_unknown(body):
    known = {field.name for field in FIELDS if field.verdict(body)}
    assert not set(VLLM[body].split()) - known


def test_no_field_of_openai_is_unknown():
    pytest.importorskip("openai")
    from openai.types import completion_create_params
    from openai.types.chat import completion_create_params as chat_create_params
    from openai.types.responses import input_token_count_params, response_create_params

    for body, params in (
        ("completions", completion_create_params.CompletionCreateParamsBase),
        ("chat", chat_create_params.CompletionCreateParamsBase),
        ("responses", response_create_params.ResponseCreateParamsBase),
        ("input_tokens", input_token_count_params.InputTokenCountParams),
    ):
        names = set(params.__annotations__) | ({"stream"} if body != "input_tokens" else set())
        known = {field.name for field in TABLE_OF[body] if field.verdict(body)}
        assert not names - known


def test_no_field_of_anthropic_is_unknown():
    pytest.importorskip("anthropic")
    from anthropic.types import message_count_tokens_params
    from anthropic.types.beta import message_create_params

    for body, names in (
        ("messages", message_create_params.MessageCreateParamsBase.__annotations__),
        ("count_tokens", message_count_tokens_params.MessageCountTokensParams.__annotations__),
    ):
        assert not set(names) - {f.name for f in TABLE_OF[body] if f.verdict(body)}


@pytest.mark.parametrize(("field", "body"), of(REFUSED))
def test_a_refused_field_is_named_unless_it_asks_for_nothing(server, field, body):
    answer = post(server, body, **{field.name: {"some": "thing"}})
    assert answer.status_code == 400 and told(answer).startswith(field.name)
    assert field.name in answer.json()["error"]["message"]
    for value in (*field.passes, None):
        answer = post(server, body, **{field.name: value})
        assert answer.status_code == 200, (value, answer.text)


@pytest.mark.parametrize(("field", "body"), of(NO_EFFECT))
def test_a_field_without_effect_passes_whatever_it_says(server, field, body, monkeypatch):
    warned_of: list[str] = []  # what the record would tell; the whole of it is long
    monkeypatch.setattr(server.service, "warn_of_unknown", warned_of.extend)
    for value in (True, "high", {"a": 1}, [], None):
        answer = post(server, body, **{field.name: value})
        assert answer.status_code == 200, (value, answer.text)
    assert field.name not in warned_of


@pytest.mark.parametrize("body", TABLE_OF)
def test_null_is_the_same_as_leaving_a_field_out(server, body):
    needed = {n for n, f in CLASSES[body].model_fields.items() if f.is_required()}
    needed |= set(NEEDED[body]) - {"max_tokens", "max_output_tokens"}
    nothing = {name: None for name in CLASSES[body].model_fields if name not in needed}
    limits = {name: value for name, value in NEEDED[body].items() if name.startswith("max_")}
    answer = post(server, body, **{**nothing, **limits})
    assert answer.status_code == 200, answer.text
    options = {"include_usage": None, "continuous_usage_stats": None}
    if "stream_options" in nothing and body in BODIES:
        assert post(server, body, stream=True, stream_options=options).status_code == 200
    for name in needed:
        answer = post(server, body, **{name: None})
        assert answer.status_code == 400 and told(answer)


@pytest.mark.parametrize("body", TABLE_OF)
def test_an_unknown_field_is_accepted_and_warned_of_once(server, body):
    name = f"colour_of_{body}"
    for _ in range(2):
        assert post(server, body, **{name: "blue"}).status_code == 200
    lines = [json.loads(line) for line in server.http.get("/trace").text.splitlines()]
    warnings = [e for e in lines if e["kind"] == "engine.warning" and f"'{name}'" in e["message"]]
    assert len(warnings) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"metadata": {"user": "x"}},
        {"reasoning_effort": "low"},
        {"verbosity": "low"},
        {"service_tier": "priority"},
        {"parallel_tool_calls": True},
        {"web_search_options": {}},
        {"kv_transfer_params": {}},
        {"logprobs": False, "top_logprobs": 0},
        {"priority": None},
        {"model": ""},
        {"messages": [{"role": "developer", "content": "be brief"}, *HI]},
    ],
)
def test_what_asks_nothing_is_taken(server, fields):
    assert post(server, "chat", **fields).status_code == 200


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("completions", {"tools": [{"type": "function"}]}),
        ("completions", {"repetition_detection": {"max_pattern_size": 4, "min_count": 3}}),
        ("completions", {"watermarking": True}),
        ("chat", {"return_prompt_text": True}),
        ("completions", {"ec_transfer_params": {"a": 1}}),
    ],
)
def test_what_was_ignored_in_silence_is_refused_by_name(server, body, fields):
    answer = post(server, body, **fields)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(fields))


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["1_0"], ["'1_0'"]),
        ([" 5 "], ["' 5 '"]),
        (["٥"], ["'٥'"]),
        (["05", "-1", "+1", "1.0", ""], ["'05'", "'-1'", "'+1'", "'1.0'", "''"]),
        (["9" * 15], ["'999999999999999'"]),
        ([f"x{i}" for i in range(30)], ["'x0'", "'x9'", "and 20 more"]),
        (["300", "5", "301"], ["tokens 300, 301"]),
    ],
)
def test_every_bad_key_of_logit_bias_is_named(server, keys, named):
    error = server.refusal(prompt="a", logit_bias=dict.fromkeys(keys, 1))
    assert error["param"] == "logit_bias"
    assert all(name in error["message"] for name in named), error["message"]


def test_an_empty_cache_salt_is_refused(server):
    error = server.refusal(prompt="a", cache_salt="")
    assert error["param"] == "cache_salt" and "everybody" in error["message"]


@pytest.mark.parametrize("penalty", [1e-38, 1e-45, 1e-5, 0, -1, 101])
def test_a_repetition_penalty_that_no_logits_survive_is_the_callers(server, penalty):
    error = server.refusal(prompt="a", repetition_penalty=penalty)
    assert error["param"] == "repetition_penalty" and "0.0001" in error["message"]


@pytest.mark.parametrize("token", [261, 2**32, 2**64, -1])
def test_detokenize_refuses_ids_beyond_the_vocabulary(server, token):
    error = server.refusal("/detokenize", tokens=[65, token])
    assert error["param"] in ("tokens", "tokens.1")
    if token < 2**63:
        assert str(token) in error["message"] and "260" in error["message"]
    assert server.http.post("/detokenize", json={"tokens": [65, 260]}).status_code == 200


@pytest.fixture(scope="module")
def trusting(run_server):
    with run_server(trust_request_chat_template=True) as running:
        yield running


def test_reasoning_effort_is_a_variable_of_the_template(trusting):
    asked = {
        "chat_template": "{{ reasoning_effort }}/{{ enable_thinking }}/{{ messages[0].role }}",
        "return_token_ids": True,
    }
    for fields, rendered in (
        ({"reasoning_effort": "none"}, b"none/False/user"),
        ({"reasoning_effort": "low"}, b"low/True/user"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            b"low/False/user",
        ),
        ({}, b"//user"),
    ):
        answer = post(trusting, "chat", **asked, **fields)
        assert bytes(answer.json()["prompt_token_ids"]) == rendered


def test_a_developer_is_a_system_where_the_template_knows_no_such_role(trusting):
    messages = [{"role": "developer", "content": "x"}]
    for template, rendered in (
        ("{{ messages[0].role }}", b"system"),
        ("{{ messages[0].role }}{# developer #}", b"developer"),
    ):
        answer = post(
            trusting, "chat", messages=messages, chat_template=template, return_token_ids=True
        )
        assert bytes(answer.json()["prompt_token_ids"]) == rendered
