"""The parts of the Ray Serve example that need no Ray: routing, relaying, errors, scaling."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from engine.server.http.errors import ApiError, unavailable
from examples.ray_serve.door import answer
from examples.ray_serve.own_server import OwnServer
from examples.ray_serve.prefix import PREFIX_CHARS, in_order, prefix_of, spread
from examples.ray_serve.processes import bind, descendants
from examples.ray_serve.relay import Asked, EngineLost, Head, coalesced, relay
from examples.ray_serve.scaling import load_of, policy

NAMES = [f"replica-{i}" for i in range(5)]
SYSTEM = {"role": "system", "content": "You are brief."}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def prefix(**body) -> bytes:
    return prefix_of(json.dumps(body).encode())


# ------------------------------------------------------------------------------------- the prefix


def test_all_turns_of_a_conversation_have_one_prefix():
    first = [SYSTEM, user("What is a token?")]
    later = [*first, {"role": "assistant", "content": "A piece."}, user("And a block?")]
    assert prefix(messages=first) == prefix(messages=later, stream=True, max_tokens=5)
    assert prefix(messages=first) != prefix(messages=[SYSTEM, user("What is a block?")])
    assert prefix(system="a", messages=first) != prefix(system="b", messages=first)
    assert prefix(input=first) == prefix(input=later)


def test_a_prompt_counts_up_to_a_length():
    same = "x" * PREFIX_CHARS
    assert prefix(prompt=same + "a") == prefix(prompt=same + "b")
    assert prefix(prompt="a" + same) != prefix(prompt="b" + same)
    assert prefix(prompt=[[1, 2, 3]]) != prefix(prompt=[[1, 2, 4]])
    assert len(prefix(prompt=same)) == PREFIX_CHARS


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"{}", b'{"messages": []}', b"[" * 5000])
def test_what_has_no_prompt_has_no_prefix(body):
    assert prefix_of(body) == b""


def test_a_lost_replica_moves_only_its_own_prompts_and_all_get_a_share():
    prompts = [str(i).encode() for i in range(2000)]
    before = {key: in_order(key, NAMES)[0] for key in prompts}
    after = {key: in_order(key, NAMES[1:])[0] for key in prompts}
    assert all(after[key] == before[key] for key in prompts if before[key] != NAMES[0])
    shares = Counter(before.values())
    assert set(shares) == set(NAMES) and min(shares.values()) > 0.8 * len(prompts) / len(NAMES)
    assert in_order(b"a", NAMES) == in_order(b"a", NAMES[::-1])  # every router decides alike


def test_a_beginning_that_all_share_goes_to_the_next_replica_when_the_first_has_enough():
    order = ["a", "b", "c"]
    assert spread(order, {"a": 3}, enough=4) == order
    assert spread(order, {"a": 4}, enough=4) == ["b", "c", "a"]
    assert spread(order, {"a": 10, "b": 9, "c": 9}, enough=4) == order  # all have: none is spared
    open_ = Counter()
    for _ in range(300):
        open_[spread(order, open_, enough=4)[0]] += 1
    assert max(open_.values()) <= 1.25 * 100 + 1


# ------------------------------------------------------------------------------------- the relay

EVENTS = [f'data: {{"n": {i}}}\n\n'.encode() for i in range(6)]


async def chunks(parts: list[bytes], pause_s: float = 0.0, fail: bool = False):
    for part in parts:
        yield part
        await asyncio.sleep(pause_s)
    if fail:
        raise EngineLost("gone")


def collected(stream: AsyncIterator) -> tuple[list, Exception | None]:
    """All that a stream yields, and what it raises then."""

    async def collect():
        got = []
        try:
            async for part in stream:
                got.append(part)
        except EngineLost as error:
            return got, error
        return got, None

    return asyncio.run(asyncio.wait_for(collect(), 30))


def test_events_cross_together_the_first_at_once():
    got, error = collected(coalesced(chunks(EVENTS * 50), interval_s=0.1))
    assert got[0] == EVENTS[0] and b"".join(got) == b"".join(EVENTS * 50) and error is None
    assert len(got) < 10  # of 300


def test_slow_events_are_not_held_back():
    got, _ = collected(coalesced(chunks(EVENTS, pause_s=0.05), interval_s=0.0))
    assert got == EVENTS


def test_a_part_of_an_event_never_crosses():
    torn = [EVENTS[0], EVENTS[1] + EVENTS[2][:5]]
    got, error = collected(coalesced(chunks(torn, fail=True), interval_s=0.01))
    assert b"".join(got) == EVENTS[0] + EVENTS[1] and isinstance(error, EngineLost)


def test_a_reader_that_leaves_ends_the_reading():
    ended = []

    async def endless():
        try:
            while True:
                yield EVENTS[0]
                await asyncio.sleep(0.001)
        finally:
            ended.append(True)

    async def leave():
        source = endless()
        async with contextlib.aclosing(coalesced(source, 0.01)) as stream:
            async for _ in stream:
                break
        await source.aclose()

    asyncio.run(leave())
    assert ended == [True]


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nx-request-id: r1\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def relayed(path, written: list[bytes]) -> tuple[list, Exception | None, bytes]:
    """What `relay` yields of a server that writes this and closes; what it was asked."""
    asked = []

    async def serve(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        asked.append(await reader.readexactly(2))
        writer.writelines(written)
        await writer.drain()
        writer.close()

    async def talk():
        async with await asyncio.start_unix_server(serve, path):
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
                headers = [(b"host", b"h"), (b"connection", b"close"), (b"x-own", b"1")]
                yielded = relay(client, Asked("POST", "/v1/x?y=%20", headers, b"{}"), 0.01)
                async for part in yielded:
                    yield part

    got, error = collected(talk())
    return got, error, b"".join(asked)


def test_a_stream_is_passed_on(tmp_path):
    got, error, asked = relayed(
        tmp_path / "s", [HEAD, *(chunk(event) for event in EVENTS), b"0\r\n\r\n"]
    )
    assert error is None and b"".join(got[1:]) == b"".join(EVENTS)
    assert got[0].status == 200 and got[0].body is None
    assert [value for name, value in got[0].headers if name == b"x-request-id"] == [b"r1"]
    assert not any(name == b"transfer-encoding" for name, _ in got[0].headers)
    assert asked.startswith(b"POST /v1/x?y=%20 HTTP/1.1\r\n") and b"x-own: 1\r\n" in asked
    assert b"connection: close" not in asked and asked.endswith(b"{}")


def test_a_server_that_dies_in_a_stream_is_lost_behind_its_last_whole_event(tmp_path):
    written = [HEAD, chunk(EVENTS[0]), chunk(EVENTS[1][:4])]
    got, error, _ = relayed(tmp_path / "s", written)
    assert isinstance(error, EngineLost) and b"".join(got[1:]) == EVENTS[0]


@pytest.mark.parametrize("written", [[], [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"]])
def test_a_server_that_dies_before_its_answer_is_whole_gives_none(tmp_path, written):
    got, error, _ = relayed(tmp_path / "s", written)
    assert got == [] and isinstance(error, EngineLost)


def test_no_server_is_a_lost_one(tmp_path):
    async def talk():
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "none"))
        async with httpx.AsyncClient(transport=transport, base_url="http://r") as client:
            async for part in relay(client, Asked("GET", "/", [])):
                yield part

    assert isinstance(collected(talk())[1], EngineLost)


# -------------------------------------------------------------------------------------- the door

STREAM = Head(200, [(b"content-type", b"text/event-stream"), (b"x-replica", b"r1")], None)
LOST = ApiError(502, "The replica was lost.")


def through_the_door(method: str, path: str, parts: list, body: dict | None = None):
    """A client's answer when the replica yields these parts (or raises one), and what was asked."""
    asked = []

    async def ask(request: Asked):
        asked.append(request)
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def any_route(request):
        return await answer(request, ask)

    async def talk():
        app = Starlette(routes=[Route("/{path:path}", any_route, methods=["GET", "POST"])])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(talk()), asked


def test_a_whole_answer_keeps_its_status_headers_and_body():
    head = Head(404, [(b"content-type", b"application/json"), (b"x-replica", b"r1")], b'{"a":1}')
    got, asked = through_the_door("GET", "/v1/models/a?b=1", [head])
    assert (got.status_code, got.json(), got.headers["x-replica"]) == (404, {"a": 1}, "r1")
    assert got.headers.get_list("content-type") == ["application/json"]
    assert (asked[0].target, asked[0].prefix, asked[0].replica) == ("/v1/models/a?b=1", b"", "")


def test_a_generation_is_routed_by_its_prefix_and_a_named_replica_is_asked_itself():
    _, asked = through_the_door("POST", "/v1/completions", [STREAM], {"prompt": "a"})
    assert asked[0].prefix == prefix(prompt="a")
    _, asked = through_the_door("POST", "/replicas/r7/v1/completions", [STREAM], {"prompt": "a"})
    assert (asked[0].replica, asked[0].target) == ("r7", "/v1/completions")


def test_a_replica_that_is_lost_before_its_answer_is_an_error_with_a_status():
    got, _ = through_the_door("POST", "/v1/chat/completions", [LOST], {"messages": [user("a")]})
    assert got.status_code == 502 and got.json()["error"]["message"] == LOST.message
    got, _ = through_the_door("POST", "/v1/messages", [unavailable("Full.", 1)], {"messages": []})
    assert (got.status_code, got.headers["retry-after"]) == (503, "1")
    assert got.json()["error"] == {"type": "overloaded_error", "message": "Full."}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_replica_that_is_lost_in_a_stream_is_an_error_and_the_end(path):
    got, _ = through_the_door("POST", path, [STREAM, EVENTS[0], LOST], {"prompt": "a"})
    first, error, done = got.text.strip().split("\n\n")
    assert first + "\n\n" == EVENTS[0].decode() and done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == 502


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_the_newer_apis_get_an_error_event(path):
    got, _ = through_the_door("POST", path, [STREAM, LOST], {"messages": [], "input": "a"})
    name, data = got.text.strip().split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert name == "event: error" and told["type"] == "error" and LOST.message in data


def test_a_record_that_is_lost_just_ends():
    got, _ = through_the_door("GET", "/trace/stream", [STREAM, b": waiting\n\n", LOST])
    assert got.text == ": waiting\n\n"


def test_the_page_is_one_replicas_and_its_address_says_which():
    got, asked = through_the_door("GET", "/", [Head(200, [(b"x-replica", b"r3")], b"")])
    assert (got.status_code, got.headers["location"]) == (307, "/replicas/r3/")
    assert asked[0].method == "HEAD"
    got, asked = through_the_door("GET", "/replicas/r3", [])
    assert got.headers["location"] == "/replicas/r3/" and not asked


# ------------------------------------------------------------------------------------ the scaling


def context(seats: list[float], blocks: list[float], queued: float):
    """What Ray tells the policy, of replicas with 8 seats."""
    return SimpleNamespace(
        aggregated_metrics={
            "num_seats": dict.fromkeys(range(len(seats)), 8.0),
            "seats": dict(enumerate(seats)),
            "blocks": dict(enumerate(blocks)),
        },
        total_queued_requests=queued,
    )


@pytest.mark.parametrize(
    "seats, blocks, queued, wanted",
    [
        ([0.7, 0.7], [0.1, 0.1], 0, 2),
        ([1.0, 1.0], [0.1, 0.1], 0, 3),  # too few seats are free
        ([0.2, 0.2], [0.9, 0.9], 0, 3),  # too few blocks are
        ([1.0, 1.0], [0.1, 0.1], 16, 6),  # as many wait as are served
        ([2.0, 1.0], [0.1, 0.1], 0, 4),  # they wait in a replica
    ],
)
def test_replicas_come_with_requests_and_with_blocks(seats, blocks, queued, wanted):
    assert policy(context(seats, blocks, queued)) == (wanted, {})


def test_nothing_is_decided_before_anything_is_told():
    silent = SimpleNamespace(aggregated_metrics={}, target_num_replicas=3)
    assert policy(silent) == (3, {})


def test_the_load_is_read_as_the_server_writes_it():
    told = {"num_requests_running": 6, "num_requests_waiting": 6, "max_num_seqs": 8,
            "kv_blocks": {"total": 200, "used": 50}}  # fmt: skip
    assert load_of(told) == {"num_seats": 8, "seats": 1.5, "blocks": 0.25}


@pytest.mark.parametrize("key", ["", "k1"])
def test_its_load_is_asked_of_a_server_with_the_servers_key(key, tmp_path, monkeypatch):
    """Without it a server that wants a key refuses, and no replica would ever be added."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def answer_load(request):
        given = request.headers.get("authorization")
        return httpx.Response(200 if given == "Bearer k1" else 401, json={"seats": 1})

    async def ask():
        server = OwnServer([], 1.0, key)
        async with httpx.AsyncClient(
            transport=httpx.MockTransport(answer_load), base_url="http://replica"
        ) as server.client:
            assert "authorization" not in server.client.headers, "clients bring their own"
            return await server.load()

    if key:
        assert asyncio.run(ask()) == {"seats": 1}
    else:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            asyncio.run(ask())


# ------------------------------------------------------------------------------ cores of a replica


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system doesn't bind")
def test_a_server_and_its_children_are_bound_to_one_core():
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
        "child.communicate()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as server:
        child = int(server.stdout.readline())
        cpu = max(os.sched_getaffinity(0))
        bind(server.pid, cpu)
        assert [one.pid for one in descendants(server.pid)] == [child]
        assert os.sched_getaffinity(server.pid) == os.sched_getaffinity(child) == {cpu}
        server.communicate(b"\n", timeout=30)
