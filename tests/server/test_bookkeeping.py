"""Ids and places in the queue: who has one keeps it, who leaves gives it back."""

from __future__ import annotations

import json
import random
import threading
import time

import httpx
import pytest

from tests.server.fake_engine import expected_text

SLOW = {"prompt": "a", "max_tokens": 40, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def slow(run_server):
    with run_server(step_s=0.01, max_num_queued_reqs=3) as running:
        yield running


def text_of(lines):
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert not [chunk for chunk in chunks if "error" in chunk], chunks
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def streamed(server, **fields):
    with server.http.stream("POST", "/v1/completions", json={**SLOW, **fields}) as answer:
        assert answer.status_code == 200, answer.read()
        return text_of(answer.iter_lines())


def leave_at_once(server, body):
    """Send a request and close the connection."""
    timeout = httpx.Timeout(5, read=0.001)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=timeout)


def expect_idle(server):
    """waiting == running == open == 0, soon."""
    deadline = time.monotonic() + 10
    requests, open_ones = server.service.client.requests, None
    while open_ones != [0] * 6:
        assert time.monotonic() < deadline, open_ones
        load = server.http.get("/load").json()
        open_ones = [
            load["num_requests_waiting"], load["num_requests_running"], load["server_load"],
            load["kv_blocks"]["used"], len(requests), requests.num_unbooked,
        ]  # fmt: skip


def test_who_leaves_at_once_takes_no_place_along(slow):
    for _ in range(8):  # more than fit into the queue
        leave_at_once(slow, {"prompt": "q", "max_tokens": 5})
    expect_idle(slow)
    assert slow.complete("q", max_tokens=2)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "fields", [{"priority": 2**64}, {"priority": -(2**70)}, {"cache_salt": "\ud83d"}]
)
def test_what_can_not_be_sent_is_refused_and_takes_nothing(slow, fields):
    body = json.dumps({"prompt": "a", "request_id": "kept", **fields})
    for _ in range(4):
        answer = slow.http.post(
            "/v1/completions", content=body, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 400 and "error" in answer.json()
    expect_idle(slow)
    assert slow.complete("a", max_tokens=1, request_id="kept")["id"] == "cmpl-kept"


@pytest.mark.parametrize("prompt", ["b", ["b", "c"]])
def test_a_second_request_with_an_id_in_use_harms_nobody(slow, prompt):
    first = slow.http.stream("POST", "/v1/completions", json={**SLOW, "request_id": "same"})
    with first as answer:
        lines = answer.iter_lines()
        got = [next(lines)]
        error = slow.refusal(prompt=prompt, max_tokens=2, request_id="same")
        assert error["param"] == "request_id" and "cmpl-same" in error["message"]
        assert text_of([*got, *lines]) == expected_text(b"a", 40)
    assert slow.complete("b", max_tokens=2, request_id="same")["id"] == "cmpl-same"
    expect_idle(slow)


def test_no_id_that_a_client_may_choose_is_that_of_anothers_prompt(slow):
    """Two prompts of one request beside requests whose ids are as near to theirs as can be."""
    body = {**SLOW, "prompt": ["a", "b"], "request_id": "near"}
    with slow.http.stream("POST", "/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        got = [next(lines)]
        assert {e.id for e in slow.service.client.requests} == {"cmpl-near", "cmpl-near:1"}
        for name in ("near-0", "near-1", "near1", "near_1"):
            other = slow.complete("c", max_tokens=3, request_id=name)
            assert other["choices"][0]["text"] == expected_text(b"c", 3)
        for name in ("near:1", "near.1", "near 1", ""):
            assert slow.refusal(prompt="c", request_id=name)["param"] == "request_id"
        texts = {0: "", 1: ""}
        for line in [*got, *lines]:
            if line.startswith("data: {"):
                choice = json.loads(line[6:])["choices"][0]
                texts[choice["index"]] += choice["text"]
    assert texts == {0: expected_text(b"a", 40), 1: expected_text(b"b", 40)}
    expect_idle(slow)


def test_a_header_in_use_gives_way(slow):
    headers = {"X-Request-Id": "proxy"}
    with slow.http.stream("POST", "/v1/completions", json=SLOW, headers=headers) as answer:
        lines = answer.iter_lines()
        assert "cmpl-proxy" in next(lines)
        other = slow.http.post(
            "/v1/completions", json={"prompt": "b", "max_tokens": 1}, headers=headers
        )
        assert other.status_code == 200 and other.json()["id"] != "cmpl-proxy"


def test_an_id_that_became_free_brings_no_other_requests_text(slow):
    """The engine still sends tokens of the request that left, when the next one has its id."""
    for prompt in "abcdefgh":
        body = {**SLOW, "prompt": prompt, "request_id": "mine"}
        with slow.http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
        while "cmpl-mine" in [entry.id for entry in slow.service.client.requests]:
            pass
        assert streamed(slow, prompt="z", max_tokens=6, request_id="mine") == expected_text(b"z", 6)
    expect_idle(slow)


@pytest.mark.slow
def test_nothing_is_left_after_a_soak_with_aborts(run_server):
    with run_server(step_s=0.002, num_blocks=40, max_num_seqs=6) as busy:
        chance = random.Random(14)
        plans = [
            (chance.choice(["a", "b" * 60, ["c", "d"]]), chance.choice([1, 2]),
             chance.choice([0.005, 0.02, 0.05, 30.0, 30.0]), chance.random() < 0.5)
            for _ in range(120)
        ]  # fmt: skip
        outcomes = {"served": 0, "left": 0}

        def client(mine):
            for prompt, n, patience_s, stream in mine:
                body = {"prompt": prompt, "n": n, "max_tokens": 12, "stream": stream}
                try:
                    answer = httpx.post(
                        f"{busy.url}/v1/completions",
                        json=body,
                        timeout=httpx.Timeout(30, read=patience_s),
                    )
                    assert answer.status_code == 200, answer.text
                    outcomes["served"] += 1
                except httpx.ReadTimeout:
                    outcomes["left"] += 1

        threads = [threading.Thread(target=client, args=(plans[i::8],)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert outcomes["served"] + outcomes["left"] == 120 and outcomes["left"] > 10, outcomes
        expect_idle(busy)
