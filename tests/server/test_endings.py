"""Clients that disconnect, engines that die, servers that are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from engine.config import EngineConfig
from engine.server.ending import LOST_ANSWERS, Server
from engine.server.lifecycle import bind
from engine.server.service import Service
from tests.server.fake_engine import crash, expected_text, fake

STREAM = {"prompt": "hello", "max_tokens": 400, "stream": True}


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_stream_that_is_left_frees_its_blocks(run_server):
    with run_server(step_s=0.02) as slow:
        with slow.http.stream("POST", "/v1/completions", json=STREAM) as answer:
            lines = answer.iter_lines()  # kept: httpx closes the connection with it
            next(lines)
            assert slow.blocks_used() > 0
        slow.wait_until_idle(timeout_s=1)
        assert slow.service.num_open == 0


def test_a_whole_answer_that_is_left_frees_its_blocks(run_server):
    with run_server(step_s=0.02) as slow:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{slow.url}/v1/completions",
                json={"prompt": ["a", "b"], "n": 2, "max_tokens": 400},
                timeout=0.3,
            )
        slow.wait_until_idle(timeout_s=1)
        assert slow.service.num_open == 0
        assert 'request_success_total{engine="0",finished_reason="abort"' in (
            slow.http.get("/metrics").text
        )


def test_a_waiting_request_that_is_left_is_forgotten(run_server):
    with run_server(step_s=0.02, max_num_seqs=1) as slow:
        running = slow.http.stream("POST", "/v1/completions", json=STREAM)
        with running:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{slow.url}/v1/completions", json={"prompt": "b"}, timeout=0.2)
            deadline = time.monotonic() + 1
            while slow.http.get("/load").json()["num_requests_waiting"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_killing_the_engine_fails_open_requests_at_once(run_server):
    with run_server(step_s=0.02) as doomed:
        answers = {}

        def whole():
            answers["whole"] = doomed.http.post(
                "/v1/completions", json={"prompt": "a", "max_tokens": 400}
            )

        def streamed():
            answers["lines"] = []
            with doomed.http.stream("POST", "/v1/completions", json=STREAM) as answer:
                answers["lines"] += [line for line in answer.iter_lines() if line]

        threads = [in_thread(whole), in_thread(streamed)]
        while doomed.service.num_open < 2:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(doomed.service.client.pid, signal.SIGKILL)
        started = time.monotonic()
        for thread in threads:
            thread.join(timeout=5)
        assert time.monotonic() - started < 1
        assert answers["whole"].status_code == 500
        assert "SIGKILL" in answers["whole"].json()["error"]["message"]
        assert '"error"' in answers["lines"][-2] and answers["lines"][-1] == "data: [DONE]"
        health = doomed.http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        assert doomed.http.post("/v1/completions", json={"prompt": "a"}).status_code == 503
        doomed.thread.join(timeout=5)  # it ends by itself
        assert not doomed.thread.is_alive() and doomed.service.client.state == "failed"


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (fake(error="No model at\n  nowhere."), "ValueError: No model at nowhere."),
        (crash, "The engine process ended with code 7."),
    ],
)
def test_a_model_that_can_not_be_loaded(run_server, load, message, tmp_path):
    record = tmp_path / "record.jsonl"
    with run_server(load=load, wait=False, trace_file=str(record)) as doomed:
        doomed.wait("failed")
        assert doomed.http.get("/health").json()["detail"] == message
        doomed.thread.join(timeout=5)
        assert not doomed.thread.is_alive()
    failed = [line for line in record.read_text().splitlines() if '"engine.failed"' in line]
    assert len(failed) == 1 and message in failed[0]


def test_a_model_without_tokenizer(tmp_path, run_server):
    from tests.server.running_server import RunningServer

    doomed = RunningServer(EngineConfig(model=str(tmp_path), log_format="off"), fake())
    try:
        doomed.wait("failed")
        assert "No tokenizer" in doomed.http.get("/health").json()["detail"]
    finally:
        doomed.close()


def test_a_signal_lets_running_requests_finish(run_server):
    with run_server(step_s=0.02) as server:
        answers = {}

        def whole():
            answers["whole"] = server.complete("hello", max_tokens=40)

        thread = in_thread(whole)
        while not server.service.num_open:
            time.sleep(0.01)
        server.server.handle_exit(signal.SIGTERM, None)
        refused = server.http.post("/v1/completions", json={"prompt": "a"})
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert server.http.get("/health").json()["status"] == "draining"
        thread.join(timeout=5)
        assert answers["whole"]["choices"][0]["text"] == expected_text(b"hello", 40)
        server.thread.join(timeout=5)
        assert not server.thread.is_alive()


def test_a_signal_does_not_wait_for_ever(run_server):
    with run_server(step_s=0.05, shutdown_timeout=0.3) as server:
        lines = []

        def streamed():
            with server.http.stream("POST", "/v1/completions", json=STREAM) as answer:
                lines.extend(line for line in answer.iter_lines() if line)

        thread = in_thread(streamed)
        while not server.service.num_open:
            time.sleep(0.01)
        started = time.monotonic()
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(timeout=10)
        assert 0.3 <= time.monotonic() - started < 5
        thread.join(timeout=5)
        assert "shutting down" in lines[-2] and lines[-1] == "data: [DONE]"


def test_a_signal_before_the_server_has_begun_ends_it(tokenizer_folder):
    config = EngineConfig(model=str(tokenizer_folder), log_format="off")
    listener = bind("127.0.0.1", 0)
    service = Service(config, fake())
    server = Server(service)
    load = server.config.load

    def told_to_end():  # uvicorn handles signals by now
        server.handle_exit(signal.SIGTERM, None)
        load()

    server.config.load = told_to_end
    thread = in_thread(lambda: server.run(sockets=[listener]))
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert service.client.state == "stopped" and not server.num_lost
    assert not service.client.engine.is_alive


def test_the_engine_process_ends_with_the_server(run_server):
    with run_server() as server:
        pid = server.service.client.pid
        assert os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(f"/proc/{pid}")


SERVER_ALONE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from tests.server.fake_engine import fake
from engine.config import EngineConfig
from engine.server.service import Service

async def run():
    service = Service(EngineConfig(model="/nowhere", log_format="off"), fake())
    await service.client.start()
    while service.client.state != "ready":
        await asyncio.sleep(0.01)
    print(service.client.pid, flush=True)
    await asyncio.sleep(60)

if __name__ == "__main__":
    asyncio.run(run())
"""


def test_the_engine_process_dies_with_a_server_that_is_killed(tmp_path):
    script = tmp_path / "server_alone.py"
    script.write_text(SERVER_ALONE)
    root = Path(__file__).parents[2]
    server = subprocess.Popen(
        [sys.executable, str(script), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    engine = int(server.stdout.readline())
    assert os.path.exists(f"/proc/{engine}")
    server.kill()
    server.wait()
    server.stdout.close()
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{engine}"):
        assert time.monotonic() < deadline, "the engine outlives its server"
        time.sleep(0.02)


SERVED = """
import sys
sys.path[:0] = sys.argv[1:2]
from engine.config import EngineConfig
from engine.server.lifecycle import serve
from tests.server.fake_engine import fake

if __name__ == "__main__":
    config = EngineConfig(model=sys.argv[2], host="127.0.0.1", port=0, log_format="off")
    sys.exit(serve(config, fake(step_s=0.02)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_second_signal_ends_every_answer_and_the_exit_code_says_so(
    tmp_path, tokenizer_folder, num_signals
):
    script = tmp_path / "served.py"
    script.write_text(SERVED)
    command = [sys.executable, str(script), str(Path(__file__).parents[2]), str(tokenizer_folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().split()[-1]
        with httpx.Client(base_url=url, timeout=30) as http:
            while http.get("/health").status_code != 200:
                time.sleep(0.05)
            answers = {}

            def whole():
                body = {"prompt": "a", "max_tokens": 60 if num_signals == 1 else 400}
                answers["whole"] = http.post("/v1/completions", json=body)

            def streamed():
                body = {**STREAM, "max_tokens": 60 if num_signals == 1 else 400}
                with http.stream("POST", "/v1/completions", json=body) as answer:
                    answers["lines"] = [line for line in answer.iter_lines() if line]

            threads = [in_thread(whole), in_thread(streamed)]
            while http.get("/load").json()["num_requests_running"] < 2:
                time.sleep(0.01)
            server.send_signal(signal.SIGTERM)
            while http.get("/health").json()["status"] != "draining":
                time.sleep(0.01)
            for _ in range(num_signals - 1):
                server.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join(timeout=20)
        code = server.wait(timeout=20)
    assert answers["lines"][-1] == "data: [DONE]"
    if num_signals == 1:
        assert code == 0 and answers["whole"].status_code == 200
        assert '"error"' not in answers["lines"][-2]
    else:
        assert code == LOST_ANSWERS and answers["whole"].status_code == 503
        assert "not complete" in answers["whole"].json()["error"]["message"]
        assert "not complete" in answers["lines"][-2]
