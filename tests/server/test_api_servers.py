"""Several server processes on one port, before one engine: real processes, as a command starts."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import select
import signal
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from engine.config import ConfigError, EngineConfig
from engine.server import lifecycle
from engine.server.telemetry.process import ProcessSeries
from engine.server.telemetry.series import SeriesSet
from tests.server.fake_engine import expected_text, fake

pytestmark = pytest.mark.slow
COUNT = 2
PLAIN = {"timeout": 60, "verify": False}  # a connection of its own, without reading certificates
RESPONSES = "/v1/responses"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def run(config, load, queue):
    """Run a server as the command does."""
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
            api_server_count=COUNT, shutdown_timeout=60.0, **options,
        )  # fmt: skip
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        load = fake(step_s=step_s, num_blocks=2048)
        self.process = context.Process(target=run, args=(config, load, queue))
        self.process.start()
        try:
            self.url = queue.get(timeout=120)
            self.port = int(self.url.rpartition(":")[2])
            deadline = time.monotonic() + 120
            while self.get("/health").status_code != 200:
                assert time.monotonic() < deadline, self.get("/health").text
                time.sleep(0.05)
        except BaseException:
            self.close()  # else it is waited for at the end of all tests
            raise

    def get(self, path, **options):
        return httpx.get(self.url + path, **PLAIN, **options)

    def complete(self, prompt="hello", headers=None, **fields):
        """One completion over a connection of its own."""
        body = {"prompt": prompt, "max_tokens": 8, **fields}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, **PLAIN)

    def respond(self, **fields):
        """One answer of the Responses API over a connection of its own."""
        body = {"input": "hello", "max_output_tokens": 8, **fields}
        return httpx.post(f"{self.url}{RESPONSES}", json=body, **PLAIN)

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
                if parent == self.process.pid and re.search(b"engine_main|spawn_main", command):
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
    running = Fleet(tokenizer_folder, step_s=0.01)
    yield running
    running.close()


def owners(fleet, of=None):
    """How many connections each server process has accepted, of those that are open; `of` these
    sockets only, since the connections of an earlier test may still be closing."""
    port = fleet.port
    ours = None if of is None else {one.getsockname()[1] for one in of}
    inodes = {}
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            words = line.split()
            theirs = int(words[2].split(":")[1], 16)
            wanted = ours is None or theirs in ours
            if int(words[1].split(":")[1], 16) == port and words[3] == "01" and wanted:
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
    port = fleet.port
    open_ = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
    deadline = time.monotonic() + 30
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
        for answer in pool.map(
            lambda name: fleet.complete(
                request_id=name, headers={"traceparent": TRACE, "tracestate": "vendor=1"}
            ),
            names,
        ):
            assert answer.status_code == 200
    for _ in range(4):
        events = [json.loads(line) for line in fleet.get("/trace").text.splitlines()]
        for kind in ("request.received", "request.tokenized", "request.queued", "request.answered"):
            of_kind = Counter(e["request_id"] for e in events if e["kind"] == kind)
            assert all(of_kind[f"cmpl-{name}"] == 1 for name in names), (kind, of_kind)
    received = [e for e in events if e["kind"] == "request.received"]
    received = [e for e in received if e["request_id"].startswith("cmpl-one-")]
    assert len({e["src"] for e in received}) == COUNT
    assert all(e["trace_context"] == {"traceparent": TRACE} for e in received)
    page = {fleet.get("/").text for _ in range(8)}
    assert len(page) == 1


def test_streams_and_a_stream_of_the_record(fleet):
    async def several():
        async with httpx.AsyncClient(base_url=fleet.url, **PLAIN) as client:

            async def one():
                body = {"prompt": "hello", "max_tokens": 30, "stream": True}
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    lines = [line async for line in answer.aiter_lines() if line]
                assert lines[-1] == "data: [DONE]"
                chunks = [json.loads(line[6:]) for line in lines[:-1]]
                return "".join(chunk["choices"][0]["text"] for chunk in chunks)

            texts = await asyncio.gather(*(one() for _ in range(16)))
            assert set(texts) == {expected_text(b"hello", 30)}

    asyncio.run(several())
    for _ in range(6):  # in a further process it is passed on
        with httpx.stream("GET", f"{fleet.url}/trace/stream", **PLAIN) as answer:
            assert next(answer.iter_lines()).startswith(("event", "id", "retry", ":"))


def test_each_of_several_answers_has_its_end(fleet):
    text = expected_text(b"hello", 8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: fleet.complete(n=n), [2, 3] * 6))
    for answer, n in zip(answers, [2, 3] * 6):
        choices = [(c["text"], c["finish_reason"]) for c in answer.json()["choices"]]
        assert choices == [(text, "length")] * n


def test_an_id_is_used_once_in_all_processes(fleet):
    longest = "x" * 64
    with ThreadPoolExecutor(12) as pool, asked_at_once(fleet, 12, request_id="mine") as open_:
        # A header with that id is no reason to refuse anything, nor is a long one.
        headers = [{"X-Request-Id": name} for name in ["mine", longest] * 6]
        others = pool.map(lambda given: fleet.complete(headers=given), headers)
        refused = first_answers(open_, 11)  # the one that has the id is left meanwhile
        others = [answer.json()["id"] for answer in others]
    found = {name for name in others if re.fullmatch(rf"cmpl-(mine|{longest})\.p[12]", name)}
    assert {name[:-3] for name in found} == {"cmpl-mine", f"cmpl-{longest}"}
    for answer in refused:
        head, _, body = answer.partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 400 "), answer
        error = json.loads(body)["error"]
        assert error["param"] == "request_id" and "in use" in error["message"]
    fleet.wait_until_idle()
    assert fleet.complete(request_id="mine").json()["id"] == "cmpl-mine"
    headers = {"X-Request-Id": "retried"}
    url, body = f"{fleet.url}/v1/completions", {"prompt": "hello", "max_tokens": 40}
    with ThreadPoolExecutor(12) as pool:
        got = list(
            pool.map(lambda _: httpx.post(url, json=body, headers=headers, **PLAIN), range(12))
        )
    assert {answer.status_code for answer in got} == {200}
    assert len({answer.json()["id"] for answer in got}) == 12
    fleet.wait_until_idle()


@contextmanager
def asked_at_once(fleet, number, **fields):
    """Connections with a request each that doesn't end by itself for a while."""
    body = json.dumps({"prompt": "hello", "max_tokens": 490, **fields}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with ExitStack() as stack:
        open_ = [
            stack.enter_context(socket.create_connection(("127.0.0.1", fleet.port), timeout=60))
            for _ in range(number)
        ]
        for one in open_:
            one.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        yield open_


@contextmanager
def streams(fleet, number):
    """Streams that don't end by themselves for a while; each has sent its first tokens."""
    with asked_at_once(fleet, number, stream=True) as open_:
        for one in open_:
            assert b"200" in one.recv(2**12)
        yield open_


def first_answers(open_, number):
    """The answers that come first, of so many connections."""
    waiting, found = set(open_), []
    while len(found) < number:
        ready, _, _ = select.select(waiting, [], [], 60)
        assert ready, f"only {len(found)} of {number} have an answer"
        waiting.difference_update(ready)
        found += [whole_answer(one) for one in ready]
    return found


def whole_answer(connection):
    """An answer up to the end of its body."""
    data = connection.recv(2**16)
    while (at := data.find(b"\r\n\r\n")) < 0 or len(data) < at + 4 + length_of(data[:at]):
        piece = connection.recv(2**16)
        assert piece, data
        data += piece
    return data.decode()


def length_of(head):
    """The length of the body that a head announces."""
    return int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])


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


@contextmanager
def keep_first(fleet):
    """A connection to the first process, which goes on answering while it drains."""
    with ExitStack() as stack:
        for _ in range(60):
            http = stack.enter_context(httpx.Client(base_url=fleet.url, **PLAIN))
            before = owners(fleet)[fleet.process.pid]
            http.get("/health")
            if owners(fleet)[fleet.process.pid] > before:
                yield http
                return
        raise AssertionError("no connection came to the first process")


def test_kept_answers_are_found_whichever_process_is_asked(fleet):
    made = [fleet.respond().json()["id"] for _ in range(4)]
    for name in made:
        assert {fleet.get(f"{RESPONSES}/{name}").status_code for _ in range(4)} == {200}
        assert fleet.respond(previous_response_id=name).status_code == 200
    for name in made:
        assert httpx.delete(f"{fleet.url}{RESPONSES}/{name}", **PLAIN).status_code == 200
        assert {fleet.get(f"{RESPONSES}/{name}").status_code for _ in range(4)} == {404}


def test_passed_requests_are_like_others(fleet):
    """Each over a connection of its own: about half come to a process that passes them on."""
    tries = range(6)
    assert len({fleet.get("/v1/models").text for _ in tries}) == 1
    for path in (RESPONSES, "/v1/completions"):
        url = f"{fleet.url}{path}"
        for content in (b" " * 17 * 2**20, (b" " * 2**20 for _ in range(40))):
            answer = httpx.post(url, content=content, **PLAIN)
            assert answer.status_code == 413 and "16,777,216" in answer.text, answer.text
    for _ in tries:
        chunks = (part for part in (b'{"input": "hel', b'lo", "max_output_tokens": 2}'))
        url, kind = f"{fleet.url}{RESPONSES}", {"Content-Type": "application/json"}
        answer = httpx.post(url, content=chunks, headers={**kind, "X-Request-Id": "mine"}, **PLAIN)
        assert answer.status_code == 200 and answer.headers.get_list("x-request-id") == ["mine"]
        head = httpx.head(f"{fleet.url}/health", **PLAIN)
        assert head.status_code == 200 and not head.content
        assert fleet.get("/nothing").status_code == 404
        moved = fleet.get("/health/")
        assert moved.status_code == 307 and moved.headers["location"] == f"{fleet.url}/health"
        assert len(moved.headers.get_list("date")) == 1
        streamed = fleet.respond(stream=True).text
        assert "response.incomplete" in streamed and '"total_tokens":16' in streamed
    with socket.create_connection(("127.0.0.1", fleet.port)) as old:
        old.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        assert old.recv(2**12).startswith(b"HTTP/1.1 200")
    events = [json.loads(line) for line in fleet.get("/trace").text.splitlines()]
    received = [e for e in events if e["kind"] == "request.received"]
    assert {e["client"] for e in received} == {"127.0.0.1"}


def test_the_port_is_the_servers_alone(fleet):
    with pytest.raises(ConfigError, match="can't listen there"):
        lifecycle.bind("127.0.0.1", fleet.port)


def aborted(http):
    """Why each request of the record was aborted, by its id."""
    events = [json.loads(line) for line in http.get("/trace").text.splitlines()]
    return {e["request_id"]: e["why"] for e in events if e["kind"] == "request.aborted"}


def test_a_killed_process_loses_its_own_and_nobody_elses(fleet):
    """The last test of this fleet."""
    with ExitStack() as stack:
        first = stack.enter_context(keep_first(fleet))
        victim = fleet.children()[-1]
        open_ = stack.enter_context(streams(fleet, 24))
        lost = owners(fleet, of=open_)[victim]
        assert 0 < lost < 24
        before = aborted(first)
        os.kill(victim, signal.SIGKILL)
        deadline, new = time.monotonic() + 20, {}
        while len(new) < lost:
            assert time.monotonic() < deadline, "what it had still runs in the engine"
            new = {name: why for name, why in aborted(first).items() if name not in before}
        assert set(new.values()) == {"its API server process has ended"}
        assert first.get("/health").json()["status"] == "draining"
        rests = rests_of(open_)
    whole = [rest for rest in rests if b"data: [DONE]" in rest]
    assert len(whole) == 24 - lost and not any(b'"error"' in rest for rest in whole)
    fleet.process.join(60)
    assert fleet.process.exitcode == 1
    assert fleet.children() == []


@pytest.mark.full
def test_a_process_that_hangs_is_killed(tokenizer_folder):
    hanging = Fleet(tokenizer_folder, engine_timeout=6.0)
    try:
        victim = hanging.children()[-1]
        os.kill(victim, signal.SIGSTOP)
        hanging.process.join(60)
        assert hanging.process.exitcode == 1 and hanging.children() == []
    finally:
        hanging.close()


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
        port = crowd.port
        with ThreadPoolExecutor(4) as pool:
            slow = [pool.submit(crowd.complete, max_tokens=30) for _ in range(2)]
            slow += [pool.submit(crowd.respond, max_output_tokens=30) for _ in range(2)]
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


def test_what_can_not_be_shared_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="--uds"):
        EngineConfig(uds="/tmp/x", api_server_count=2)
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(ConfigError, match="Linux"):
        EngineConfig(api_server_count=2)


def test_memory_of_several_processes_adds_up():
    def resident(text):
        return float(re.search(rb"^process_resident_memory_bytes (\S+)$", text, re.M)[1])

    alone = resident(ProcessSeries().text())
    assert resident(ProcessSeries().text([os.getpid()])) > 1.5 * alone
    assert resident(ProcessSeries().text([2**22 + 1])) < 1.5 * alone  # no such process
