"""Several server processes on one port, before one engine: real processes, as a command starts."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from engine.config import ConfigError, EngineConfig
from engine.server.telemetry.series import SeriesSet
from tests.server.fake_engine import expected_text, fake

pytestmark = pytest.mark.slow
COUNT = 3


def run(config, load, queue):
    """Run a server as the command does."""
    from engine.server import lifecycle

    said = lifecycle.address

    def address(*args):
        queue.put(said(*args))
        return said(*args)

    lifecycle.address = address
    raise SystemExit(lifecycle.serve(config, load))


class Fleet:
    def __init__(self, folder, step_s=0.0, **options):
        config = EngineConfig(
            model=str(folder), host="127.0.0.1", port=0, log_format="off",
            api_server_count=COUNT, shutdown_timeout=5.0, **options,
        )  # fmt: skip
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        load = fake(step_s=step_s, num_blocks=2048)
        self.process = context.Process(target=run, args=(config, load, queue))
        self.process.start()
        self.url = queue.get(timeout=60)
        deadline = time.monotonic() + 120
        while self.get("/health").status_code != 200:
            assert time.monotonic() < deadline, self.get("/health").text
            time.sleep(0.05)

    def get(self, path, **options):
        return httpx.get(self.url + path, timeout=30, **options)

    def complete(self, prompt="hello", **fields):
        """One completion over a connection of its own."""
        body = {"prompt": prompt, "max_tokens": 8, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)

    def metric(self, name):
        lines = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics").text, re.M)
        return sum(map(float, lines))

    def children(self):
        """The other server processes, by number."""
        own = os.getpid()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != own:
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        parent = int(file.read().rpartition(")")[2].split()[1])
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        command = file.read()
                except OSError:
                    continue
                if parent == self.process.pid and b"spawn_main" in command:
                    found.append(int(entry))
        return sorted(found)  # the engine process was started first

    def wait_until_idle(self):
        deadline = time.monotonic() + 10
        while True:
            load = self.get("/load").json()
            if not (load["num_requests_running"] or load["kv_blocks"]["used"]):
                return load
            assert time.monotonic() < deadline, load
            time.sleep(0.02)

    def close(self):
        self.process.terminate()
        self.process.join(20)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@pytest.fixture(scope="module")
def fleet(tokenizer_folder):
    running = Fleet(tokenizer_folder, step_s=0.002)
    yield running
    running.close()


def owners(fleet):
    """How many connections each server process has accepted, of those that are open."""
    port = int(fleet.url.rpartition(":")[2])
    inodes = {}
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            words = line.split()
            if int(words[1].split(":")[1], 16) == port and words[3] == "01":
                inodes[f"socket:[{words[9]}]"] = True
    counts = Counter()
    for pid in (fleet.process.pid, *fleet.children()):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{name}") in inodes:
                    counts[pid] += 1
            except OSError:
                continue
    return counts


def test_64_connections_are_divided_and_all_are_counted_once(fleet):
    before = fleet.metric("vllm:generation_tokens_total"), fleet.metric("http_requests_total")
    port = int(fleet.url.rpartition(":")[2])
    open_ = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    deadline = time.monotonic() + 5
    while sum(owners(fleet).values()) < 64 and time.monotonic() < deadline:
        time.sleep(0.05)
    divided = owners(fleet)
    assert len(divided) == COUNT and sum(divided.values()) == 64, divided
    assert max(divided.values()) < 48, divided
    body = json.dumps({"prompt": "hello", "max_tokens": 8}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    head += b"Connection: close\r\n"
    for one in open_:
        one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    text = expected_text(b"hello", 8).encode()
    for one in open_:
        answer = b""
        while piece := one.recv(2**16):
            answer += piece
        one.close()
        assert answer.startswith(b"HTTP/1.1 200") and text in answer, answer
    told = {(fleet.metric("vllm:generation_tokens_total"), fleet.metric("http_requests_total"))}
    for _ in range(20):  # whichever process answers
        told.add(
            (fleet.metric("vllm:generation_tokens_total"), fleet.metric("http_requests_total"))
        )
    assert told == {(before[0] + 64 * 8, before[1] + 64)}
    assert fleet.metric("vllm:request_success_total") >= 64
    assert fleet.metric("vllm:engine_sleep_state") == 1  # a gauge isn't added up


def test_the_record_is_one(fleet):
    names = [f"one-{place}" for place in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(lambda name: fleet.complete(request_id=name), names):
            assert answer.status_code == 200
    for _ in range(4):
        events = [json.loads(line) for line in fleet.get("/trace").text.splitlines()]
        for kind in ("request.received", "request.tokenized", "request.queued", "request.answered"):
            of_kind = Counter(e["request_id"] for e in events if e["kind"] == kind)
            assert all(of_kind[f"cmpl-{name}"] == 1 for name in names), (kind, of_kind)
    assert len({e["src"] for e in events if e["kind"] == "request.received"}) == COUNT
    page = {fleet.get("/").text for _ in range(8)}
    assert len(page) == 1


def test_streams_and_a_stream_of_the_record(fleet):
    async def several():
        async with httpx.AsyncClient(base_url=fleet.url, timeout=30) as client:

            async def one():
                body = {"prompt": "hello", "max_tokens": 60, "stream": True}
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    lines = [line async for line in answer.aiter_lines() if line]
                assert lines[-1] == "data: [DONE]"
                chunks = [json.loads(line[6:]) for line in lines[:-1]]
                return "".join(chunk["choices"][0]["text"] for chunk in chunks)

            texts = await asyncio.gather(*(one() for _ in range(16)))
            assert set(texts) == {expected_text(b"hello", 60)}

    asyncio.run(several())
    for _ in range(6):  # in a further process it is passed on
        with httpx.stream("GET", f"{fleet.url}/trace/stream", timeout=30) as answer:
            assert next(answer.iter_lines()).startswith(("event", "id", "retry", ":"))


def test_an_id_is_used_once_in_all_processes(fleet):
    slow = {"request_id": "mine", "max_tokens": 400}
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: fleet.complete(**slow), range(12)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 400: 11}
    refused = [a.json()["error"] for a in answers if a.status_code == 400]
    assert {(error["param"], "in use" in error["message"]) for error in refused} == {
        ("request_id", True)
    }
    headers = {"X-Request-Id": "retried"}
    url, body = f"{fleet.url}/v1/completions", {"prompt": "hello", "max_tokens": 100}
    with ThreadPoolExecutor(12) as pool:
        got = list(
            pool.map(lambda _: httpx.post(url, json=body, headers=headers, timeout=60), range(12))
        )
    assert {answer.status_code for answer in got} == {200}
    assert len({answer.json()["id"] for answer in got}) == 12
    fleet.wait_until_idle()


@pytest.mark.full
def test_the_queue_has_one_limit_and_all_drain(tokenizer_folder):
    crowd = Fleet(tokenizer_folder, step_s=0.02, max_num_seqs=1, max_num_queued_reqs=4)
    try:
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: crowd.complete(max_tokens=30), range(24)))
        counts = Counter(answer.status_code for answer in answers)
        assert set(counts) == {200, 503} and 4 <= counts[200] <= 8, counts
        busy = next(answer for answer in answers if answer.status_code == 503)
        assert "at most 4 may" in busy.text and busy.headers["Retry-After"]
        assert crowd.wait_until_idle()["num_requests_waiting"] == 0
        port = int(crowd.url.rpartition(":")[2])
        with ThreadPoolExecutor(4) as pool:
            slow = [pool.submit(crowd.complete, max_tokens=30) for _ in range(4)]
            deadline = time.monotonic() + 10
            while crowd.get("/load").json()["server_load"] < 4:
                assert time.monotonic() < deadline
            os.kill(crowd.process.pid, signal.SIGTERM)
            assert all(done.result().status_code == 200 for done in slow)
        crowd.process.join(15)
        assert crowd.process.exitcode == 0 and crowd.children() == []
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        crowd.close()


@contextmanager
def streams(fleet, number):
    """Streams that don't end by themselves for a while; each has sent its first tokens."""
    port = int(fleet.url.rpartition(":")[2])
    body = json.dumps({"prompt": "hello", "max_tokens": 400, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        open_ = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(number)
        ]
        for one in open_:
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        for one in open_:
            assert b"200" in one.recv(2**12)
        yield open_


def rests_of(open_):
    """What the streams still bring, to their ends."""

    def rest(one):
        data = b""
        try:
            while b"[DONE]" not in data and (piece := one.recv(2**16)):
                data += piece
        except ConnectionError:
            pass
        return data

    with ThreadPoolExecutor(len(open_)) as pool:
        return list(pool.map(rest, open_))


def test_a_killed_process_loses_its_own_and_nobody_elses(tokenizer_folder):
    doomed = Fleet(tokenizer_folder, step_s=0.02)
    try:
        with ExitStack() as stack:
            first = stack.enter_context(keep_first(doomed))
            victim = doomed.children()[-1]
            idle = owners(doomed)[victim]
            open_ = stack.enter_context(streams(doomed, 24))
            lost = owners(doomed)[victim] - idle
            assert 0 < lost < 24
            deadline = time.monotonic() + 5  # a stream's head comes before its first token
            while first.get("/load").json()["num_requests_running"] != 24:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while first.get("/load").json()["num_requests_running"] != 24 - lost:
                assert time.monotonic() < deadline, "what it had still runs in the engine"
                time.sleep(0.05)
            assert first.get("/health").json()["status"] == "draining"
            rests = rests_of(open_)
        assert sum(b"data: [DONE]" in rest for rest in rests) == 24 - lost
        doomed.process.join(15)
        assert doomed.process.exitcode == 1
        assert doomed.children() == []
    finally:
        doomed.close()


@contextmanager
def keep_first(fleet):
    """A connection to the first process, which goes on answering while it drains."""
    with ExitStack() as stack:
        for _ in range(60):
            http = stack.enter_context(httpx.Client(base_url=fleet.url, timeout=30))
            before = owners(fleet)[fleet.process.pid]
            http.get("/health")
            if owners(fleet)[fleet.process.pid] > before:
                yield http
                return
        raise AssertionError("no connection came to the first process")


@pytest.mark.full
def test_a_killed_engine_ends_all(tokenizer_folder):
    ending = Fleet(tokenizer_folder, step_s=0.005)
    try:
        with streams(ending, 12) as open_:
            os.kill(ending.children()[0], signal.SIGKILL)
            rests = rests_of(open_)
        assert all(b'"error"' in rest and b"[DONE]" in rest for rest in rests)
        ending.process.join(15)
        assert ending.process.exitcode == 1
    finally:
        ending.close()


def test_counts_of_several_processes_add_up():
    def series():
        made = SeriesSet({"model": "m"})
        return (
            made,
            made.counter("c", "c", ("kind",), [("a",)]),
            made.gauge("g", "g"),
            made.histogram("h", "h", (1, 2)),
        )

    first, counter, gauge, histogram = series()
    second, other_counter, other_gauge, other_histogram = series()
    counter.inc(2, ("a",))
    other_counter.inc(3, ("a",))
    other_counter.inc(1, ("b",))
    gauge.set(7)
    other_gauge.set(9)
    histogram.observe(1.5)
    other_histogram.observe(0.5)
    other_histogram.observe(10)
    text = first.text([second.counted()]).decode()
    for line in (
        'c_total{kind="a",model="m"} 5.0', 'c_total{kind="b",model="m"} 1.0', 'g{model="m"} 7.0',
        'h_bucket{le="1.0",model="m"} 1', 'h_bucket{le="2.0",model="m"} 2',
        'h_bucket{le="+Inf",model="m"} 3', 'h_sum{model="m"} 12.0', 'h_count{model="m"} 3',
    ):  # fmt: skip
        assert line in text.splitlines(), (line, text)
    assert first.text() != text  # nothing of it stays


def test_a_unix_socket_has_one_process():
    with pytest.raises(ConfigError, match="--uds"):
        EngineConfig(uds="/tmp/x", api_server_count=2)
