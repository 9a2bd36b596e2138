"""OpenAI's Responses API over HTTP: items, events in their order, refusals, and the store."""

from __future__ import annotations

import os
import signal

import httpx
import pytest

from engine.server.http.errors import ApiError
from engine.server.responses.referred_items import ReferredItems
from engine.server.responses.response_store import LARGEST_BYTES, OVERHEAD_BYTES, ResponseStore
from engine.server.responses.responses_answer import ResponsesAnswer
from tests.server.newer_apis import parsed, prompt_of
from tests.server.tiny_tokenizer import ASSISTANT, END, SYSTEM, USER

RESPONSES, COUNT = "/v1/responses", "/v1/responses/input_tokens"
CALL = {"type": "function_call", "call_id": "c1", "name": "clock", "arguments": '{"zone": "CET"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "12"}
USER_HI = {"role": "user", "content": "hi"}


def respond(server, given="hi", **fields):
    body = {"input": given, "max_output_tokens": 6, **fields}
    answer = server.http.post(RESPONSES, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(server, given="hi", **fields):
    body = {"input": given, "max_output_tokens": 6, "stream": True, **fields}
    return parsed(server.http.post(RESPONSES, json=body).text)


def prompt(server, given, **fields):
    """The prompt that a request becomes."""
    return prompt_of(
        server, lambda name: respond(server, given, request_id=name, **fields), "resp_"
    )


# ------------------------------------------------------------------------------------- the answer


def test_an_answer_is_the_chats(server):
    """Nothing is generated in another way: the text is that of the same chat."""
    made = respond(server, seed=1)
    chat = {"messages": [USER_HI], "max_tokens": 6, "seed": 1}
    same = server.http.post("/v1/chat/completions", json=chat).json()["choices"][0]["message"]
    (item,) = made["output"]
    assert item["content"][0]["text"] == same["content"] and item["id"].startswith("msg_")
    assert made["id"].startswith("resp_") and made["object"] == "response"
    assert made["status"] == "incomplete" and made["usage"]["total_tokens"] == 11
    assert made["usage"]["input_tokens"] == 5 and made["error"] is None


def test_the_events_have_their_order_and_numbers(server):
    got = events(server)
    names = [name for name, _ in got]
    deltas = names.count("response.output_text.delta")
    assert deltas > 1
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [data["sequence_number"] for _, data in got] == list(range(len(got)))
    assert all(data["type"] == name for name, data in got)
    assert got[0][1]["response"]["output"] == [] and got[0][1]["response"]["usage"] is None
    text = "".join(data["delta"] for name, data in got if name == "response.output_text.delta")
    assert got[-1][1]["response"]["output"][0]["content"][0]["text"] == text
    kept = server.http.get(f"{RESPONSES}/{got[-1][1]['response']['id']}").json()
    assert kept == got[-1][1]["response"]


def test_log_probabilities_come_with_their_text(server):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = respond(server, **fields)["output"][0]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in part["logprobs"])
    got = events(server, **fields)
    told = [data for name, data in got if name == "response.output_text.delta"]
    assert all("".join(e["token"] for e in d["logprobs"]) == d["delta"] for d in told)


def test_a_failure_in_a_stream_is_told_twice(run_server):
    """As an event of its own, and as the state of the answer."""
    with run_server(step_s=0.05) as doomed:
        body = {"input": "hi", "stream": True}
        with doomed.http.stream("POST", RESPONSES, json=body) as answer:
            pieces = answer.iter_text()
            text = next(pieces)
            while "delta" not in text:
                text += next(pieces)
            os.kill(doomed.service.client.pid, signal.SIGKILL)
            text += "".join(pieces)
        (name, error), (last, data) = parsed(text)[-2:]
        assert name == "error" and error["message"] and error["code"] == "server_error"
        assert last == "response.failed" and data["response"]["status"] == "failed"
        assert data["response"]["error"]["message"] == error["message"]
        assert data["sequence_number"] == error["sequence_number"] + 1


def test_numbers_have_no_gap_before_a_failure(server, monkeypatch):
    """Events that were made and never sent had numbers."""
    take = ResponsesAnswer.take

    def fail(self, piece):
        take(self, piece)
        if self.num_told_pieces == 2:
            raise RuntimeError("a fault behind some events")
        self.num_told_pieces += 1

    monkeypatch.setattr(ResponsesAnswer, "take", fail)
    monkeypatch.setattr(ResponsesAnswer, "num_told_pieces", 0, raising=False)
    got = events(server)
    assert [name for name, _ in got[-2:]] == ["error", "response.failed"]
    assert [data["sequence_number"] for _, data in got] == list(range(len(got)))


# -------------------------------------------------------------------------------------- the prompt


@pytest.mark.parametrize(
    ("given", "instructions", "rendered"),
    [
        ("hi", None, [USER, *b"hi", END, ASSISTANT]),
        ("hi", "be", [SYSTEM, *b"be", END, USER, *b"hi", END, ASSISTANT]),
        ([USER_HI], None, [USER, *b"hi", END, ASSISTANT]),
        ([{"role": "developer", "content": "be"}, {"type": "message", **USER_HI}], None,
         [SYSTEM, *b"be", END, USER, *b"hi", END, ASSISTANT]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "h"},
                                       {"type": "input_text", "text": "i"}]}], None,
         [USER, *b"h\ni", END, ASSISTANT]),
        ([USER_HI, {"type": "message", "role": "assistant", "status": "completed", "id": "msg_1",
                    "content": [{"type": "output_text", "text": "hi", "annotations": []}]},
          USER_HI], None,
         [USER, *b"hi", END, ASSISTANT, *b"hi", END, USER, *b"hi", END, ASSISTANT]),
    ],
)  # fmt: skip
def test_what_the_model_reads(server, given, instructions, rendered):
    told = prompt(server, given, instructions=instructions)
    tokens = server.http.post("/tokenize", json={"prompt": told["text"]}).json()["tokens"]
    assert tokens == rendered
    assert told["route"] == RESPONSES and "ignored" not in told
    counted = server.http.post(COUNT, json={"input": given, "instructions": instructions})
    assert counted.json() == {
        "object": "response.input_tokens",
        "input_tokens": len(rendered),
    }


TURNS = (
    "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}|{{ m.name }}"
    "{% for c in m.tool_calls or [] %}|{{ c.function.name }}:{{ c.function.arguments.zone }}"
    "{% endfor %}]{% endfor %}{{ enable_thinking }}/{{ reasoning_effort }}"
)
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [],
           "content": [{"type": "reasoning_text", "text": "Hm."}]}  # fmt: skip
SAID = {"role": "assistant", "content": "hi"}


@pytest.fixture(scope="module")
def with_calls(run_server):
    with run_server(chat_template=TURNS) as running:
        yield running


@pytest.mark.parametrize(
    ("items", "rendered"),
    [
        ([THOUGHT, SAID, CALL, CALL, OUTPUT],
         "[assistant|hi|Hm.||clock:CET|clock:CET][tool|12||clock]"),
        ([CALL, SAID], "[assistant||||clock:CET][assistant|hi||]"),
        ([SAID, SAID], "[assistant|hi||][assistant|hi||]"),
        ([THOUGHT, CALL, OUTPUT, THOUGHT, SAID],
         "[assistant||Hm.||clock:CET][tool|12||clock][assistant|hi|Hm.|]"),
        ([{"type": "reasoning", "encrypted_content": "x", "summary": []}, SAID],
         "[assistant|hi||]"),
        ([CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "1"}]}],
         "[assistant||||clock:CET][tool|1||clock]"),
    ],
)  # fmt: skip
def test_items_of_one_turn_are_one_message(with_calls, items, rendered):
    assert prompt(with_calls, [USER_HI, *items])["text"] == f"[user|hi||]{rendered}/"


def test_effort_is_a_variable_of_the_template(with_calls):
    for effort, rendered in (("none", "False/none"), ("low", "True/low"), (None, "/")):
        told = prompt(with_calls, "hi", reasoning={"effort": effort})
        assert told["text"].endswith(f"]{rendered}")


def test_an_answer_goes_on_from_an_earlier_one_without_its_instructions(server):
    first = respond(server, "one", instructions="be")
    said = first["output"][0]["content"][0]["text"]
    told = prompt(server, "two", previous_response_id=first["id"])
    assert told["text"] == f"<|user|>one<|end|><|assistant|>{said}<|end|><|user|>two<|end|>" + (
        "<|assistant|>"
    )
    assert respond(server, store=False)["store"] is False
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    told = prompt(server, [reference, USER_HI])
    assert told["text"].startswith(f"<|assistant|>{said}<|end|>")
    second = respond(server, [reference, USER_HI])  # it keeps the reference, not the item
    for given in ({"input": [reference, USER_HI]}, {"input": "more"}):
        if given["input"] == "more":
            given["previous_response_id"] = second["id"]
        told = prompt(server, given.pop("input"), **given)
        assert told["text"].startswith(f"<|assistant|>{said}<|end|>")


def test_truncation_leaves_out_the_oldest_turns(server):
    turns = [{"role": role, "content": f"{place:2} " + "x" * 60}
             for place in range(6) for role in ("user", "assistant")]  # fmt: skip
    given = [{"role": "system", "content": "be"}, *turns, USER_HI]
    error = server.refusal(RESPONSES, input=given, max_output_tokens=6)
    assert "512" in error["message"]
    text = prompt(server, given, truncation="auto")["text"]
    assert text.startswith("<|system|>be<|end|><|user|>") and text.endswith(
        "hi<|end|><|assistant|>"
    )
    kept = [place for place in range(6) if f"{place:2} xx" in text]
    assert kept == list(range(kept[0], 6)) and kept[0] > 0
    tokens = {"input": given, "truncation": "auto"}
    assert server.http.post(COUNT, json=tokens).json()["input_tokens"] <= 506


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["hi"]}, "input"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input.0.role"),
        ({"input": [{"role": "user", "content": 3}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
         "input.0.content.0.text"),
        ({"input": [USER_HI, {"type": "web_search_call"}]}, "input.1"),
        ({"input": [{**CALL, "arguments": {}}]}, "input.0.arguments"),
        ({"input": [{**OUTPUT, "call_id": None}]}, "input.0.call_id"),
        ({"input": [{**OUTPUT, "output": {"a": 1}}]}, "input.0.output"),
        ({"input": [{"type": "item_reference", "id": "msg_0"}]}, "input.0.id"),
        ({"input": [USER_HI, CALL], "instructions": "be"}, "input.1.tool_calls"),
        ({"input": "a" * 600}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "text.format"),
        ({"reasoning": {"summary": "much"}}, "reasoning.summary"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "some"}, "truncation"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_served_is_named(server, fields, param, stream):
    error = server.refusal(RESPONSES, **{"input": "hi", "stream": stream, **fields})
    assert error["param"].split(".str")[0].split(".list")[0] == param and error["message"]
    assert "messages" not in error["message"] and "structured_outputs" not in error["message"]


def test_an_unknown_earlier_answer_is_404(server):
    error = server.refusal(RESPONSES, status=404, input="a", previous_response_id="resp_0")
    assert error["param"] == "previous_response_id" and "--response-store-ttl" in error["message"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        assert server.http.request(method, f"{RESPONSES}/resp_0{path}").status_code == 404


# ---------------------------------------------------------------------------------------- the store


def test_input_items_have_pages(server):
    given = [{"role": "user", "content": str(place)} for place in range(5)]
    path = f"{RESPONSES}/{respond(server, given)['id']}/input_items"
    page = server.http.get(path, params={"limit": 2}).json()
    assert [item["content"] for item in page["data"]] == ["4", "3"] and page["has_more"]
    page = server.http.get(path, params={"after": page["last_id"]}).json()
    assert [item["content"] for item in page["data"]] == ["2", "1", "0"] and not page["has_more"]
    page = server.http.get(path, params={"order": "asc"}).json()
    assert [item["content"] for item in page["data"]] == list("01234")
    for params in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "msg_0"}):
        assert server.http.get(path, params=params).status_code == 400


def test_an_answer_belongs_to_its_key(run_server):
    with run_server(api_key=["one", "two"]) as server:
        own, other = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"input": "hi", "max_output_tokens": 2}
        made = httpx.post(server.url + RESPONSES, json=body, headers=own).json()
        path = f"{server.url}{RESPONSES}/{made['id']}"
        item = {"type": "item_reference", "id": made["output"][0]["id"]}
        for headers, status in ((other, 404), ({"x-api-key": "one"}, 200)):
            assert httpx.get(path, headers=headers).status_code == status
            for more in ({"previous_response_id": made["id"]}, {"input": [item, USER_HI]}):
                answer = httpx.post(server.url + RESPONSES, json={**body, **more}, headers=headers)
                assert answer.status_code == status or (status == 404 and "id" in answer.text)
                assert (answer.status_code == 200) == (status == 200)
        assert httpx.delete(path, headers=other).status_code == 404
        assert httpx.delete(path, headers=own).json()["deleted"] is True


def test_a_server_may_keep_nothing(run_server):
    with run_server(response_store_bytes=0) as server:
        made = respond(server)
        assert made["store"] is False
        error = server.refusal(RESPONSES, status=404, input="a", previous_response_id=made["id"])
        assert "--response-store-bytes 0" in error["message"]


def answer(name, text="a"):
    return {"id": name, "output": [{"id": f"msg_{name}", "text": text}]}


def test_the_store_is_bounded_in_bytes_and_the_longest_unused_goes_first():
    store = ResponseStore(5 * 2_000, 100.0)
    for name in "abcdefgh":
        store.keep(0, answer(name, "x" * 500), [], [])
        assert store.get(0, "a") is not None  # used each time, so it stays
        assert store.num_bytes <= store.max_bytes
    kept = [name for name in "abcdefgh" if store.get(0, name)]
    assert kept[0] == "a" and kept[1:] == list("abcdefgh")[-len(kept) + 1 :] and len(kept) < 8
    assert not store.keep(0, answer("huge", "x" * 20_000), [], [])
    assert store.get(0, "huge") is None and [n for n in "abcdefgh" if store.get(0, n)] == kept
    assert store.items_beside(0, "msg_a")["msg_a"] and not store.items_beside(0, "msg_b")
    assert not store.items_beside(1, "msg_a")
    for name in kept:
        assert store.remove(0, name) and not store.remove(0, name)
    assert store.num_bytes == 0 and len(store) == 0 and not store.items_beside(0, "msg_a")


def test_one_answer_takes_a_part_of_the_store_at_most():
    store = ResponseStore(100 * LARGEST_BYTES, 100.0)
    assert store.keep(0, answer("a", "x" * (LARGEST_BYTES - 10_000)), [], [])
    assert not store.keep(0, answer("b"), [], [{"text": "x" * LARGEST_BYTES}])
    assert len(store) == 1


def test_the_store_forgets_after_a_while():
    now = [0.0]
    store = ResponseStore(100 * OVERHEAD_BYTES, 10.0, clock=lambda: now[0])
    store.keep(0, answer("a"), [{"id": "i"}], [])
    now[0] = 6.0
    store.keep(0, answer("b"), [], [])
    now[0] = 9.0
    assert store.get(0, "a") is not None
    now[0] = 10.0
    assert store.get(0, "a") is None and not store.items_beside(0, "i")
    assert store.get(0, "b") is not None and len(store) == 1
    store.keep(0, answer("b"), [], [])  # again: younger
    now[0] = 17.0
    assert store.get(0, "b") is not None
    now[0] = 20.0
    assert store.get(0, "b") is None and store.num_bytes == 0


def test_references_read_an_answer_once_and_are_bounded(monkeypatch):
    store = ResponseStore(10 * LARGEST_BYTES, 100.0)
    given = [{"type": "message", "id": f"i{place}", "text": "x" * 1_000} for place in range(1_000)]
    store.keep(0, answer("a"), given, [])
    store.keep(0, answer("b"), [{"type": "item_reference", "id": "i0"}], [])
    reads = []
    items_beside = store.items_beside
    monkeypatch.setattr(store, "items_beside", lambda *own: reads.append(own) or items_beside(*own))
    referred = ReferredItems(store, 0)
    assert [referred.find(item["id"]) for item in given] == given and len(reads) == 1
    assert referred.find("msg_a")["id"] == "msg_a" and referred.find("none") is None
    with pytest.raises(ApiError, match="refers to"):
        for _ in range(LARGEST_BYTES // 1_000):
            referred.find("i0")
