"""What read_body accepts: whole characters, 64-bit integers, nothing without a limit."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from engine.server.answering import door
from engine.server.answering.door import FOR_THE_MODEL, read_body
from engine.server.answering.limits import DECLARED, Bound, Limits
from engine.server.http.errors import ApiError
from engine.server.http.shapes import failure_response

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
HALF = "\ud83d"
SCOPE = {"type": "http", "path": "/v1/completions", "root_path": "", "headers": []}
HI = [{"role": "user", "content": "hi"}]
LIMITS = Limits(max_model_len=512, vocab_size=261, longest_token=13, max_prompts=64)
TOO_MUCH = "a" * (300 * 1024)
MANY = 140_000  # more entries than any field may have
MUCH = [
    json.dumps(value).encode()
    for value in (TOO_MUCH, ["x" * 300_000], [1] * MANY, {str(i): 1 for i in range(MANY)})
]


def read(body: dict[str, Any]) -> Any:
    return read_body(json.dumps(body).encode(), LIMITS)


def refused(body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        read(body)
    assert raised.value.status == 400
    return raised.value


def post(server, route: str, body: dict[str, Any] | bytes):
    content = body if isinstance(body, bytes) else json.dumps(body)  # halves as escapes
    return server.http.post(route, content=content, headers={"Content-Type": "application/json"})


# ------------------------------------------------------------------------------ half characters


@pytest.mark.parametrize(
    ("body", "mended"),
    [
        ({"prompt": HALF}, {"prompt": "\ufffd"}),
        ({"prompt": ["a", f"b{HALF}c"]}, {"prompt": ["a", "b\ufffdc"]}),
        (
            {"messages": [{"role": "user", "content": HALF}]},
            {"messages": [{"role": "user", "content": "\ufffd"}]},
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": f"\udc00{HALF}"}]}
                ]
            },
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ufffd\ufffd"}]}]},
        ),
        ({"prompt": "a\U0001f600"}, {"prompt": "a\U0001f600"}),  # a whole pair
    ],
)
def test_text_for_the_model_is_mended(body, mended):
    assert read(body) == mended


@pytest.mark.parametrize("name", [*sorted(DECLARED - FOR_THE_MODEL), "colour"])
@pytest.mark.parametrize("wrap", [lambda half: half, lambda half: [half], lambda half: {half: 1}])
def test_half_characters_elsewhere_are_refused_by_the_name_of_the_field(name, wrap):
    error = refused({name: wrap(HALF)})
    assert name in error.message and "\\ud83d" in error.message
    assert (error.param or "").startswith(name)
    failure_response(error, SCOPE)  # its own text can be sent


def test_half_characters_in_names_are_refused():
    for body in ({HALF: 1}, {"messages": [{HALF: 1}]}):
        failure_response(refused(body), SCOPE)


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "stop": HALF}, "stop"),
        ("/v1/completions", {"prompt": "a", "stop": ["x", HALF]}, "stop.1"),
        ("/v1/completions", {"prompt": "a", "cache_salt": HALF}, "cache_salt"),
        ("/v1/completions", {"prompt": "a", "bad_words": [HALF]}, "bad_words.0"),
        ("/v1/completions", {"prompt": "a", "request_id": HALF}, "request_id"),
        ("/v1/completions", {"prompt": "a", "model": HALF}, "model"),
        ("/v1/completions", {"prompt": "a", "trace": HALF}, "trace"),
        (CHAT, {"messages": HI, "chat_template": HALF}, "chat_template"),
        (CHAT, {"messages": HI, "chat_template_kwargs": {"x": HALF}}, "chat_template_kwargs.x"),
        ("/tokenize", {"prompt": "a", "model": HALF}, "model"),
        ("/detokenize", {"tokens": [1], "model": HALF}, "model"),
    ],
)
def test_half_characters_over_http(server, route, body, param):
    answer = post(server, route, body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_mended_text_is_answered_and_recorded(server):
    answer = post(server, "/v1/completions", {"prompt": f"door{HALF}", "max_tokens": 1})
    assert answer.status_code == 200
    message = {"role": "user", "content": f"door{HALF}"}
    assert post(server, CHAT, {"messages": [message], "max_tokens": 1}).status_code == 200
    tokens = post(server, "/tokenize", {"prompt": HALF}).json()["tokens"]
    assert bytes(tokens).decode() == "\ufffd"
    deadline = time.monotonic() + 5  # the engine's events come a little later
    record = ""
    while record.rpartition("door\ufffd")[2].count('"request.finished"') < 1:
        assert time.monotonic() < deadline, record
        record = server.http.get("/trace").text


def test_a_body_that_is_not_utf_8(server):
    for body in (b'{"prompt":"\xed\xa0\xbd"}', '{"prompt":"a"}'.encode("utf-16")):
        answer = post(server, "/v1/completions", body)
        assert answer.status_code == 400 and "UTF-8" in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------ long integers

HUGE = 10**300


@pytest.mark.parametrize("name", [*sorted(DECLARED), "colour"])
@pytest.mark.parametrize("value", [HUGE, -HUGE, 2**63, [HUGE], {"x": HUGE}, [[HUGE]]])
def test_integers_beyond_64_bits_are_refused_by_the_name_of_the_field(name, value):
    error = refused({name: value})
    assert (error.param or "").startswith(name) and len(error.message) < 200


def test_integers_of_64_bits_pass():
    body = {"seed": 2**63 - 1, "priority": -(2**63), "user": "1" * 30}
    assert read(body) == body


@pytest.mark.parametrize("digits", [20, 300, 5000])
@pytest.mark.parametrize("name", ["n", "max_tokens", "seed", "priority", "logprobs", "temperature"])
def test_long_integers_over_http(server, name, digits):
    body = b'{"prompt":"a","%s":%s}' % (name.encode(), b"9" * digits)
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("digits", [20, 300, 5000])
@pytest.mark.parametrize(
    "address",
    [
        "/trace/state?step={}", "/trace/state?step=-{}", "/trace/tokens?ids={}",
        "/trace/tokens?ids=1,{}", "/v1/models/{}", "/trace/requests/{}", "/trace?request_id={}",
    ],
)  # fmt: skip
def test_long_integers_in_addresses(server, address, digits):
    answer = server.http.get(address.format("9" * digits))
    assert answer.status_code in ((200,) if "request_id=" in address else (400, 404)), answer.text


def test_long_integers_in_event_ids(server):
    for number in ("9" * 300, "9" * 5000):
        with server.http.stream("GET", "/trace/stream", params={"since": number}) as answer:
            assert answer.status_code == 200


# ------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_field_has_a_bound_at_every_level(name):
    """Computed from the request models: a field that is added has the default bound."""
    for value in MUCH:
        for nested in (value, b"[%b]" % value, b'{"x":%b}' % value):
            with pytest.raises(ApiError) as raised:
                read_body(b'{"%b":%b}' % (name.encode(), nested), LIMITS)
            error = raised.value
            assert error.status == 400 and error.param, error.message
            assert error.param.split(".")[0] in (name, "n"), error.message
            assert any(digit.isdigit() for digit in error.message)
            assert len(error.message) < 300


def test_keys_have_a_bound():
    assert refused({"k" * 5000: 1}).message.count("128") == 1
    assert "characters in a key" in refused({"chat_template_kwargs": {TOO_MUCH: 1}}).message
    assert "256" in refused({f"k{i}": 1 for i in range(300)}).message


def test_levels_have_a_bound():
    value: Any = 1
    for _ in range(100):
        value = {"x": value}
    assert "nested" in refused({"chat_template_kwargs": value}).message


def test_the_default_bound_lets_ordinary_requests_through():
    body = {
        "prompt": ["word " * 100] * 64, "stop": ["\n", "END"], "bad_words": ["no"] * 1000,
        "logit_bias": {str(token): -100 for token in range(261)}, "user": "u" * 10_000,
        "allowed_token_ids": list(range(261)), "cache_salt": "s" * Bound().characters,
    }  # fmt: skip
    assert read(body) == body


def test_prompts_are_bounded_by_what_the_model_can_hold():
    large = Limits(max_model_len=100_000, vocab_size=50_000, longest_token=20)
    assert large.prompt_characters == 2_000_000
    body = json.dumps({"prompt": "a" * 2_000_001}).encode()
    with pytest.raises(ApiError, match=r"2,000,001 characters; at most 2,000,000.*100,000 tokens"):
        read_body(body, large)
    assert read_body(json.dumps({"prompt": "a" * 2_000_000}).encode(), large)


@pytest.mark.parametrize(
    ("body", "param", "limit"),
    [
        ({"prompt": "a" * 8_400_000}, "prompt", "65,536"),
        ({"prompt": ["a"] * 100_000}, "prompt", "1,024"),
        ({"prompt": [[1]] * 90_000}, "prompt", "1,024"),
        ({"prompt": ["a"] * 100, "n": 128}, "n", "1,024"),
        ({"prompt": "a", "bad_words": ["w"] * 3_000}, "bad_words", "1,024"),
        ({"prompt": "a", "bad_words": ["w"] * 100_000}, "bad_words", "1,024"),
        ({"prompt": "a", "logit_bias": dict.fromkeys(range(300_000), 1)}, "logit_bias", "1,024"),
        ({"prompt": "a", "stop": ["s" * 1_000_000] * 4}, "stop.0", "1,024"),
        ({"prompt": "a", "allowed_token_ids": [1] * 900_000}, "allowed_token_ids", "261"),
        ({"prompt": "a", "stop_token_ids": [1] * 900_000}, "stop_token_ids", "1,024"),
        ({"messages": HI * 30_000}, "messages", "8,192"),
        (
            {"messages": [{"role": "user", "content": "a" * 8_400_000}]},
            "messages.0.content",
            "65,536",
        ),
    ],
)
def test_the_limits_over_http(server, body, param, limit):
    route = CHAT if "messages" in body else "/v1/completions"
    error = server.refusal(route, **body)
    assert error["param"] == param and limit in error["message"]


@pytest.mark.parametrize("what", [b"[],", b"1,", b'{"a":1},'])
def test_bodies_of_too_many_values(server, what):
    body = b'{"prompt":"a","x":[' + what * (15 * 2**20 // len(what)) + b"1]}"
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == 413


def test_every_route_with_a_body_is_behind_the_door(server):
    paths = server.http.get("/openapi.json").json()["paths"]
    routes = [path for path, ways in paths.items() for way in ways.values() if "requestBody" in way]
    assert len(routes) >= 4
    for route in routes:
        answer = post(server, route, {"colour": HALF})
        assert answer.status_code == 400 and "surrogate" in answer.text


@pytest.mark.parametrize("levels", [450, 500, 700, 900, 980, 1100])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_body_of_any_depth_is_read_or_refused(levels, opening):
    """The parser takes more levels than the functions that walk through what it gives."""
    closing = {"[": "]"}.get(opening, "}")
    deep = opening * levels + "1" + closing * levels
    body = f'{{"q": "\\u0041", "prompt": "a", "zzz": {deep}}}'.encode()
    try:
        read_body(body, Limits())
    except ApiError as error:
        assert error.status == 400 and "nested" in str(error)


# ------------------------------------------------------------------------------ very many things


def many_keys() -> dict[str, int]:
    return {f"k{i}": 1 for i in range(900_000)}


MANY_STRINGS = ["b\\"] * 70_000


@pytest.mark.parametrize(
    ("make_body", "field", "told"),  # made by the test: collecting it stays quick
    [
        (lambda: {"prompt": "a", "x": many_keys()}, "The body",
         "900,003 strings and keys; at most 65,536"),
        (lambda: {"chat_template_kwargs": many_keys()}, "chat_template_kwargs",
         "900,000 strings and keys"),
        (lambda: {"logit_bias": dict.fromkeys(range(300_000), 1)}, "logit_bias",
         "at most 1,024 entries"),
        (lambda: {"prompt": MANY_STRINGS}, "prompt", "at most 64 entries"),
        (lambda: {"prompt": [1] * 1_000_002}, "prompt", "1,000,001 commas; at most 1,000,000"),
        (lambda: {"messages": HI * 50_000}, "messages", "at most 8,192 entries"),
        (lambda: {"x": [{}] * 100_001}, "The body", "lists and objects"),
    ],
    ids=["keys", "keys in one", "biases", "strings", "token ids", "messages", "objects"],
)  # fmt: skip
def test_very_many_things_are_refused_before_they_are_parsed(make_body, field, told, monkeypatch):
    monkeypatch.setattr(door, "_parsed", lambda body: pytest.fail("it was parsed"))
    with pytest.raises(ApiError) as raised:
        read_body(json.dumps(make_body()).encode(), LIMITS)
    message = raised.value.message
    assert raised.value.status == (413 if field == "The body" else 400)
    assert message.startswith(f"{field} has ") and told in message and "Send less" in message


def test_quotes_and_colons_in_a_text_are_no_strings():
    text = '"a":{"b\\":"c"}\\\\ ' * 20_000
    assert read({"prompt": [1], "colour": text})["colour"] == text


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 2**64])
def test_an_integer_at_the_edge_is_shown(value):
    assert f"seed is {value}; it must be in [-92" in refused({"seed": value}).message
    assert read({"seed": 2**63 - 1})["seed"] == 2**63 - 1


def test_both_parsers_read_alike():
    """The faster one is tried first; what it refuses, the other one may take."""
    plain = b'{"a":1e5,"b":-0,"c":"\\ud83d\\ude00","d":[true,null,0.1],"e":123456789012}'
    assert read_body(plain, LIMITS) == json.loads(plain)
    assert read_body(b'{"temperature":1e400}', LIMITS) == {"temperature": float("inf")}
