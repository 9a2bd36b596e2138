"""Whatever a field holds, no answer is a 5xx, no traceback is written, and no event is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest
from loguru import logger

from engine.server.answering import protocol
from engine.server.http.shapes import ANTHROPIC_TYPES
from engine.server.messages.messages_body import CountTokensRequest, MessagesRequest
from engine.server.responses.responses_body import InputTokensRequest, ResponsesRequest
from tests.server.hostile_values import VALUES, bodies
from tests.support.cases import FULL

pytestmark = pytest.mark.slow

HI = [{"role": "user", "content": "a"}]
STREAM = {"max_tokens": 1, "stream": True}
ROUTES: list[tuple[str, type, dict[str, Any]]] = [
    ("/v1/completions", protocol.CompletionRequest, {"prompt": "a", "max_tokens": 1}),
    ("/v1/completions", protocol.CompletionRequest, {"prompt": [1], **STREAM}),
    ("/v1/chat/completions", protocol.ChatRequest, {"messages": HI, "max_tokens": 1}),
    ("/v1/chat/completions", protocol.ChatRequest, {"messages": HI, **STREAM}),
    ("/tokenize", protocol.TokenizeRequest, {"prompt": "a"}),
    ("/tokenize", protocol.TokenizeRequest, {"messages": HI}),
    ("/detokenize", protocol.DetokenizeRequest, {"tokens": [1]}),
    ("/v1/messages", MessagesRequest, {"messages": HI, "max_tokens": 1}),
    ("/v1/messages", MessagesRequest, {"messages": HI, **STREAM}),
    ("/v1/messages/count_tokens", CountTokensRequest, {"messages": HI}),
    ("/v1/responses", ResponsesRequest, {"input": "a", "max_output_tokens": 1}),
    ("/v1/responses", ResponsesRequest, {"input": "a", "max_output_tokens": 1, "stream": True}),
    ("/v1/responses/input_tokens", InputTokensRequest, {"input": HI}),
]  # fmt: skip
ADDRESSES = [
    "/trace?request_id={}", "/trace/state?step={}", "/trace/requests/{}", "/trace/tokens?ids={}",
    "/v1/models/{}", "/metrics?x={}", "/health?x={}", "/load?x={}", "/version?x={}", "/{}",
    "/trace/requests?x={}", "/trace/perfetto?x={}", "/v1/responses/{}",
    "/v1/responses/{}/input_items", "/v1/responses/a/input_items?after={}",
    "/v1/responses/a/input_items?limit={}", "/v1/responses/a?stream={}",
    "/trace/viewers?x={}", "/room/{}", "/guide/{}",
]  # fmt: skip
IN_ADDRESSES = [
    "", "a", "%00", "%ED%A0%BD", "%FF", "-1", "9" * 20, "9" * 5000, "1.5", "%F0%9F%98%80", "%1B[2J",
    "..%2F..%2Fetc%2Fpasswd", "a" * 3000, "%C2%B2", "1_0", "1,2,%C2%B2", "%20", "&&==", "null",
]  # fmt: skip


@pytest.fixture(scope="module")
def errors():
    """What is logged as an error meanwhile."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="ERROR")
    yield lines
    logger.remove(sink)


@pytest.fixture(scope="module")
def trusting(run_server):
    """A server that runs clients' templates: more of what they send is used."""
    with run_server(trust_request_chat_template=True, trace_buffer=1_000_000) as running:
        yield running


class Answer(NamedTuple):
    status_code: int
    headers: dict[str, str]
    text: str


def answers(server, requests: list[tuple[str, str, bytes | None]]) -> list[Answer]:
    """The answers to (method, address, body)s, some at a time.

    The application is called in the server's own loop, as uvicorn calls it: a connection and a
    client would take most of the time.
    """
    loop, app = server.service.client._loop, server.server.config.app

    async def ask() -> list[Answer]:
        free = asyncio.Semaphore(8)

        async def one(request: tuple[str, str, bytes | None]) -> Answer:
            async with free:
                return await asyncio.wait_for(called(app, *request), 60)

        return await asyncio.gather(*map(one, requests))

    return asyncio.run_coroutine_threadsafe(ask(), loop).result()


async def called(app, method: str, address: str, body: bytes | None) -> Answer:
    path, _, query = address.partition("?")
    messages = [{"type": "http.request", "body": body or b""}]
    never = asyncio.Event()
    sent = []

    async def receive():
        if not messages:
            await never.wait()
        return messages.pop()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"host", b"a")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    return Answer(sent[0]["status"], headers, text)


def assert_honest(answer: Answer | httpx.Response, what: str) -> None:
    assert answer.status_code < 500, f"{what[:300]}: {answer.text[:300]}"
    if answer.status_code >= 400:
        error = json.loads(answer.text)["error"]
        assert error["message"], what[:300]
        if "code" in error:
            assert error["code"] == answer.status_code, what[:300]
        else:
            others = "invalid_request_error"
            assert error["type"] == ANTHROPIC_TYPES.get(answer.status_code, others), what[:300]
        assert len(error["message"]) < 2_000, what[:300]
    elif answer.headers.get("content-type", "").startswith("text/event-stream"):
        for failure in ('"code":5', "event: error"):
            assert failure not in answer.text, f"{what[:300]}: {answer.text[-300:]}"


FEWER = 4
"""Of so many bodies one is sent without `--full`: every value, and several to each field."""
assert math.gcd(FEWER, len(VALUES)) == 1


def recorded(server, kind: str) -> int:
    return server.http.get("/trace").text.count(f'"kind":"{kind}"')


@pytest.mark.parametrize(("route", "model", "base"), ROUTES)
def test_every_field_of_every_body(trusting, errors, route, model, base):
    chosen = itertools.islice(bodies(model, base), 0, None, 1 if FULL else FEWER)
    sent = [json.dumps(body).encode() for body in chosen]
    sent += [json.dumps(value).encode() for value in VALUES]  # in place of the body
    received = answers(trusting, [("POST", route, body) for body in sent])
    for body, answer in zip(sent, received):
        assert_honest(answer, body.decode())
    assert not errors, errors[0]
    assert len({answer.status_code for answer in received}) > 1  # some pass, some don't


def test_addresses(server, errors):
    asked = [address.format(value) for address in ADDRESSES for value in IN_ADDRESSES]
    with ThreadPoolExecutor(8) as pool:  # /trace waits for the engine's events
        for address, answer in zip(asked, pool.map(server.http.get, asked)):
            assert_honest(answer, address)
    assert not errors, errors[0]


def test_headers(server, errors):
    for value in ("", "a", "9" * 5000, "\x80\xff", "-1", "a,b", "é"):
        for name in ("X-Request-Id", "Last-Event-ID", "Authorization", "traceparent", "Accept"):
            answer = server.http.post(
                "/v1/completions", json={"prompt": "a", "max_tokens": 1},
                headers={name: value.encode("latin-1")},
            )  # fmt: skip
            assert_honest(answer, f"{name}: {value}")
    for kind in ("", "text/plain", "application/json; charset=latin-1", "application/x+json", "/"):
        answer = server.http.post("/v1/completions", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 400
    assert not errors, errors[0]


def test_no_event_was_lost(trusting, errors):
    """After all of that every request is recorded from its beginning to its end, and in /trace."""
    before = recorded(trusting, "request.finished"), recorded(trusting, "request.received")
    for i in range(10):
        trusting.complete("a", max_tokens=1, request_id=f"after-{i}")
    trusting.wait_until_idle()
    deadline = time.monotonic() + 10
    while recorded(trusting, "request.finished") < before[0] + 10:  # the engine's come later
        assert time.monotonic() < deadline, "events are missing"
    assert recorded(trusting, "request.received") == before[1] + 10
    with trusting.http.stream("GET", "/trace/stream") as stream:
        told = ""
        for part in stream.iter_text():
            told += part
            if "after-9" in told and "request.finished" in told.rpartition("after-9")[0]:
                break
    load = trusting.http.get("/load").json()
    assert load["server_load"] == load["num_requests_running"] == load["num_requests_waiting"] == 0
