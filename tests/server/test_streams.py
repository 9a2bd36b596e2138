from __future__ import annotations

import itertools
import json
import socket
import time

import msgspec
import pytest

from engine.server.http.sse import frame
from tests.server.fake_engine import expected_text

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def stream(server, route="/v1/completions", **body):
    """The chunks of a streamed answer, with the time at which each came."""
    chunks, times, done = [], [], False
    with server.http.stream("POST", route, json={"stream": True, **body}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                assert not done, "something came after [DONE]"
                times.append(time.monotonic())
                if line == "data: [DONE]":
                    done = True
                else:
                    chunks.append(json.loads(line[6:]))
    assert done, "the stream ended without [DONE]"
    return chunks, times


def test_the_pieces_are_the_whole(server):
    chunks, _ = stream(server, prompt="hello", max_tokens=20)
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == expected_text(b"hello", 20)
    assert [c["finish_reason"] for c in choices] == [None] * (len(choices) - 1) + ["length"]
    assert all(choice["text"] for choice in choices)
    assert all("usage" not in chunk for chunk in chunks)


def test_tokens_come_when_they_are_made(run_server):
    with run_server(step_s=0.05) as slow:
        started = time.monotonic()
        _, times = stream(slow, prompt="hello", max_tokens=10)
        assert times[0] - started < 0.3
        assert times[-1] - times[0] > 0.3  # nine more steps of 50 ms
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert sum(gap > 0.02 for gap in gaps) >= 7


def test_usage(server):
    asked = {"prompt": "hello", "max_tokens": 5}
    chunks, _ = stream(server, **asked, stream_options={"include_usage": True})
    *rest, last = chunks
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in rest)
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks, _ = stream(server, **asked, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 5 and counts[0] >= 1


def test_prompts_and_choices_keep_apart(server):
    chunks, _ = stream(server, prompt=["one", "two"], n=2, max_tokens=6, echo=True)
    texts = dict.fromkeys(range(4), "")
    ends = dict.fromkeys(range(4), 0)
    for choice in (chunk["choices"][0] for chunk in chunks):
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] += choice["finish_reason"] is not None
    first, second = "one" + expected_text(b"one", 6), "two" + expected_text(b"two", 6)
    assert texts == {0: first, 1: first, 2: second, 3: second}
    assert set(ends.values()) == {1}


def test_logprobs_come_with_their_text(server):
    text = expected_text(b"hello", 12)
    stop = text[9:12]
    chunks, _ = stream(server, prompt="hello", max_tokens=40, logprobs=1, echo=True, stop=stop)
    tokens, offsets = [], []
    for choice in (chunk["choices"][0] for chunk in chunks):
        tokens += choice["logprobs"]["tokens"]
        offsets += choice["logprobs"]["text_offset"]
    assert "".join(tokens) == "hello" + text[: text.index(stop) + 3]
    assert offsets == list(range(len(tokens)))


def test_token_ids_are_all_told(server):
    chunks, _ = stream(server, prompt="hello", max_tokens=9, return_token_ids=True)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["prompt_token_ids"] == list(b"hello")
    ids = [token for choice in choices for token in choice["token_ids"]]
    assert bytes(ids).decode() == expected_text(b"hello", 9)


def test_only_the_prompt(server):
    chunks, _ = stream(server, prompt="hello", max_tokens=0, echo=True)
    assert [c["choices"][0]["text"] for c in chunks] == ["hello"]
    assert chunks[0]["choices"][0]["finish_reason"] == "length"


def test_chat(server):
    chunks, _ = stream(server, CHAT, messages=HI, max_tokens=6, n=2)
    by_choice = {0: [], 1: []}
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        (choice,) = chunk["choices"]
        by_choice[choice["index"]].append(choice)
    for choices in by_choice.values():
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert all("role" not in choice["delta"] for choice in choices[1:])
        assert "".join(choice["delta"].get("content", "") for choice in choices) != ""
        assert [choice["finish_reason"] for choice in choices].count("length") == 1
        assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("route", ["/v1/completions", CHAT])
def test_heartbeats_before_the_first_token_and_between(run_server, route):
    body = {"prompt": "hello"} if route == "/v1/completions" else {"messages": HI}
    with run_server(step_s=0.3, heartbeat_s=0.05) as slow:
        request = {**body, "max_tokens": 2, "stream": True}
        with slow.http.stream("POST", route, json=request) as answer:
            lines = [line for line in answer.iter_lines() if line]
    first = next(place for place, line in enumerate(lines) if line.startswith("data"))
    assert all(line == ": waiting" for line in lines[:first]) and first >= 2
    assert lines[-1] == "data: [DONE]" and ": waiting" in lines[first:]


def test_no_heartbeat_while_tokens_flow(run_server):
    with run_server(step_s=0.02, heartbeat_s=0.5) as quick:
        request = {"prompt": "hello", "max_tokens": 30, "stream": True}
        with quick.http.stream("POST", "/v1/completions", json=request) as answer:
            assert ": waiting" not in list(answer.iter_lines())


def test_characters_that_some_clients_take_for_line_ends_are_escaped():
    text = "one\x85two\u2028three\u2029four é"
    event = frame([msgspec.json.encode({"text": text})]).decode()
    assert len(event.splitlines()) == 2 and "é" in event
    assert json.loads(event.removeprefix("data: ")) == {"text": text}


def test_a_client_that_does_not_read_delays_nobody_and_takes_bounded_memory(run_server):
    body = {"prompt": "hello", "n": 16, "max_tokens": 400, "stream": True, "return_token_ids": True}
    with run_server(num_blocks=2048) as quick, socket.socket() as lazy:
        # The server's side of a connection has the buffer of the socket that it came to.
        quick.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(quick.listener.getsockname())
        data = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        lazy.sendall(
            f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data
        )
        open_ = wait_for(lambda: connection_of(quick, lazy.getsockname()))
        wait_for(lambda: open_.flow.write_paused)
        assert stream(quick, prompt="hello", max_tokens=400)[0]
        waiting = open_.transport.get_write_buffer_size()
        assert open_.flow.write_paused and waiting < 2**20, waiting
        received = b""
        while piece := lazy.recv(2**16):
            received += piece
    texts = dict.fromkeys(range(16), "")
    for line in b"".join(received.split(b"\r\n")).split(b"data: ")[1:-1]:
        choice = json.loads(line.rpartition(b"}")[0] + b"}")["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert set(texts.values()) == {expected_text(b"hello", 400)}


def connection_of(server, client):
    """The server's side of a client's connection."""
    open_ = list(server.server.server_state.connections)
    return next((connection for connection in open_ if connection.client == client), None)


def joined(lists):
    return list(itertools.chain.from_iterable(lists))


def wait_for(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("route", ["/v1/completions", CHAT])
def test_tokens_are_told_together_at_an_interval(run_server, route):
    asked = {"prompt": "hello"} if route == "/v1/completions" else {"messages": HI}
    asked |= {"max_tokens": 11, "return_token_ids": True, "logprobs": 1}
    if route == CHAT:
        asked |= {"logprobs": True, "top_logprobs": 1}
    with run_server(stream_interval=4) as running:
        whole = running.http.post(route, json=asked).json()["choices"][0]
        chunks, _ = stream(running, route, **asked)
        only_text = {
            key: asked[key] for key in ("prompt", "messages", "max_tokens") if key in asked
        }
        short, general = (
            [chunk["choices"] for chunk in stream(running, route, **only_text, **more)[0]]
            for more in ({}, {"trace": "full"})  # the record's text takes the general way
        )
    assert short == general and len(short) == len(chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    told = [choice for choice in choices if choice.get("token_ids")]  # chat begins with the role
    assert [len(choice["token_ids"]) for choice in told] == [1, 4, 4, 2]
    assert joined(choice["token_ids"] for choice in told) == whole["token_ids"]
    if route == CHAT:
        text = "".join(choice["delta"]["content"] for choice in told)
        assert text == whole["message"]["content"]
        logprobs = joined(choice["logprobs"]["content"] for choice in told)
        assert logprobs == whole["logprobs"]["content"]
    else:
        assert "".join(choice["text"] for choice in told) == whole["text"]
        assert joined(c["logprobs"]["tokens"] for c in told) == whole["logprobs"]["tokens"]
