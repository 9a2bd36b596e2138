"""/openapi.json is true: real answers have the shapes that it declares."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter

from engine.server.answering import answer_schemas
from engine.server.messages import message_schemas as messages
from engine.server.responses import response_schemas as responses

HI = [{"role": "user", "content": "hi"}]
EVERYTHING = {
    "max_tokens": 3,
    "n": 2,
    "prompt_logprobs": 1,
    "return_token_ids": True,
}
USAGE = {"include_usage": True, "continuous_usage_stats": True}
ASKED = {
    "/v1/completions": [
        {"prompt": "a", "max_tokens": 1},
        {"prompt": ["a", "b"], "logprobs": 2, "echo": True, **EVERYTHING},
    ],
    "/v1/chat/completions": [
        {"messages": HI, "max_tokens": 1},
        {"messages": HI, "logprobs": True, "top_logprobs": 2, **EVERYTHING},
    ],
    "/v1/messages": [{"messages": HI, "max_tokens": 2}],
    "/v1/messages/count_tokens": [{"messages": HI}],
    "/v1/responses": [
        {"input": "a", "max_output_tokens": 2},
        {"input": HI, "include": ["message.output_text.logprobs"], "max_output_tokens": 2},
    ],
    "/v1/responses/input_tokens": [{"input": "a"}],
    "/tokenize": [{"prompt": "a"}, {"messages": HI, "return_token_strs": True}],
    "/detokenize": [{"tokens": [65]}],
    "/v1/models": [None],
    "/v1/models/tiny": [None],
}
SHAPES = {
    "/v1/completions": answer_schemas.Completion,
    "/v1/chat/completions": answer_schemas.ChatCompletion,
    "/v1/messages": messages.AnthropicMessage,
    "/v1/messages/count_tokens": messages.TokenCount,
    "/v1/responses": responses.ResponseObject,
    "/v1/responses/input_tokens": responses.InputTokens,
    "/tokenize": answer_schemas.Tokenized,
    "/detokenize": answer_schemas.Detokenized,
    "/v1/models": answer_schemas.ModelList,
    "/v1/models/tiny": answer_schemas.ModelCard,
}
CHUNKS = {
    "/v1/completions": answer_schemas.CompletionChunk,
    "/v1/chat/completions": answer_schemas.ChatChunk,
    "/v1/messages": messages.MessageEvent,
    "/v1/responses": responses.ResponseEvent,
}
FAILURES = {"/v1/messages": messages.AnthropicError}


@pytest.fixture(scope="module")
def document(server):
    return server.http.get("/openapi.json").json()


def fits(shape, text):
    TypeAdapter(shape).validate_json(text, strict=True)  # unknown keys are refused, too


@pytest.mark.parametrize(("route", "body"), [(r, b) for r, bs in ASKED.items() for b in bs])
def test_an_answer_has_its_shape(server, document, route, body):
    answer = server.http.post(route, json=body) if body else server.http.get(route)
    assert answer.status_code == 200
    fits(SHAPES[route], answer.text)
    path = route.replace("tiny", "{name}")
    operation = document["paths"][path]["post" if body else "get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": f"#/components/schemas/{SHAPES[route].__name__}"}


@pytest.mark.parametrize(("route", "body"), [(r, b) for r in CHUNKS for b in ASKED[r]])
def test_a_chunk_has_its_shape(server, document, route, body):
    for options in (None, USAGE):
        asked = {**body, "stream": True}
        if route.endswith("completions"):
            asked["stream_options"] = options
        text = server.http.post(route, json=asked).text
        events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
        assert events
        for event in events:
            fits(CHUNKS[route], event)
    content = document["paths"][route]["post"]["responses"]["200"]["content"]
    name = content["text/event-stream"]["schema"]["$ref"].rpartition("/")[2]
    assert name == CHUNKS[route].__name__ and name in document["components"]["schemas"]


def test_a_failure_has_its_shape(server, document):
    for status, answer in (
        (400, server.http.post("/v1/completions", json={})),
        (404, server.http.post("/v1/completions", json={"prompt": "a", "model": "other"})),
        (404, server.http.get("/v1/models/other")),
        (413, server.http.post("/tokenize", content=b" " * (16 * 2**20 + 1))),
        (400, server.http.post("/v1/messages", json={})),
        (413, server.http.post("/v1/messages", content=b" " * (16 * 2**20 + 1))),
    ):
        assert answer.status_code == status
        shape = FAILURES.get(answer.request.url.path, answer_schemas.Error)
        fits(shape, answer.text)
        path = answer.request.url.path.replace("other", "{name}")
        responses = document["paths"][path][answer.request.method.lower()]["responses"]
        schema = responses[str(status)]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{shape.__name__}"}


def test_nothing_is_said_of_422(document):
    text = json.dumps(document)
    assert '"422"' not in text and "ValidationError" not in text
    for methods in document["paths"].values():
        for operation in methods.values():
            if operation.get("requestBody") or operation.get("parameters"):
                assert "400" in operation["responses"]


def test_every_reference_leads_somewhere(document):
    schemas = document["components"]["schemas"]

    def walk(node):
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].rpartition("/")[2] in schemas
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


def test_types_of_content_are_the_real_ones(server, document):
    for path, methods in document["paths"].items():
        if "get" not in methods or "{" in path or path == "/trace/stream":
            continue
        answer = server.http.get(path)
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in methods["get"]["responses"]["200"]["content"], path


def test_the_key_is_a_scheme_and_guarded_routes_ask_for_it(run_server, document):
    assert "security" not in json.dumps(document["paths"])
    with run_server(api_key="secret") as keyed:
        guarded = keyed.http.get("/openapi.json").json()
        assert guarded["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
        for path, methods in guarded["paths"].items():
            for method, operation in methods.items():
                url = keyed.url + path.replace("{", "").replace("}", "")
                status = keyed.http.request(
                    method, url, headers={"Authorization": "Bearer wrong"}, timeout=5
                ).status_code
                assert (status == 401) == bool(operation.get("security")), path
                assert ("401" in operation["responses"]) == (status == 401)
