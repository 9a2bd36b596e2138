"""The server as a process: how it starts, which signals it obeys, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]

LONG = {"prompt": "hello", "max_tokens": 3000, "ignore_eos": True, "temperature": 0}


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for_step(server, tokens: int = 3) -> None:
    """Wait until the engine works on something."""
    deadline = time.monotonic() + 20
    while server.http.get("/load").json()["kv_blocks"]["used"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_tokenise_round_trip(api):
    text = "naïve café — 🙂 the end"
    tokens = api.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert api.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text


def test_key_guards_everything_else(api):
    with httpx.Client(base_url=api.url) as stranger:
        for path in ("/health", "/ping", "/version"):
            assert stranger.get(path).status_code == 200
        for path in ("/v1/models", "/metrics", "/trace", "/load"):
            assert stranger.get(path).status_code == 401


def test_a_stream_that_is_left_frees_its_blocks(api):
    with api.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()  # kept: httpx closes the connection with it
        assert '"text"' in next(lines)
        assert api.http.get("/load").json()["kv_blocks"]["used"] > 0
    api.wait_until_idle(2)


def test_a_whole_answer_that_is_left_frees_its_blocks(api):
    with pytest.raises(httpx.ReadTimeout):
        headers = {"Authorization": "Bearer test-key"}
        httpx.post(f"{api.url}/v1/completions", json=LONG, headers=headers, timeout=0.2)
    api.wait_until_idle(2)


def test_prompt_logprobs_and_the_record(api):
    answer = api.complete(
        "hello", max_tokens=1, prompt_logprobs=2, request_id="traced", trace="full"
    )
    assert len(answer["choices"][0]["prompt_logprobs"]) == 5
    kinds: set[str] = set()
    deadline = time.monotonic() + 5
    while not {"request.received", "block.allocated", "sample.drawn", "request.finished"} <= kinds:
        assert time.monotonic() < deadline, kinds
        events = map(json.loads, api.http.get("/trace").text.splitlines())
        kinds = {e["kind"] for e in events if e.get("request_id") == "cmpl-traced"}


def test_metrics_after_all_this(api):
    text = api.http.get("/metrics").text
    labels = '{engine="0",model_name="tiny-llama"}'
    assert f"vllm:num_requests_running{labels} 0.0" in text
    assert f"vllm:kv_cache_usage_perc{labels} 0.0" in text


def test_life_from_the_first_second_to_sigterm(start_server):
    with start_server("--max-num-seqs", "1", "--max-num-queued-reqs", "1", ready=False) as server:
        early = server.http.get("/health")
        assert early.status_code == 503 and early.json()["status"] == "loading"
        server.wait_until_ready()
        answers: dict[str, httpx.Response] = {}

        def running():
            answers["running"] = server.http.post("/v1/completions", json=LONG)

        def waiting():
            answers["waiting"] = server.http.post("/v1/completions", json={"prompt": "b"})

        threads = [in_thread(running)]
        wait_for_step(server)
        threads.append(in_thread(waiting))
        deadline = time.monotonic() + 5
        while not server.http.get("/load").json()["num_requests_waiting"]:
            assert time.monotonic() < deadline
        full = server.http.post("/v1/completions", json={"prompt": "c"})
        assert full.status_code == 503 and "retry-after" in full.headers

        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.http.get("/health").json()["status"] != "draining":
            assert time.monotonic() < deadline
        assert server.http.post("/v1/completions", json={"prompt": "d"}).status_code == 503
        for thread in threads:
            thread.join(timeout=30)
        assert server.exit_code() == 0, server.output
        assert answers["running"].json()["usage"]["completion_tokens"] == 3000
        assert answers["waiting"].json()["usage"]["completion_tokens"] == 16


def test_killing_the_engine(start_server):
    with start_server() as server:
        engine = server.engine_pid()
        answers: dict[str, object] = {}

        def whole():
            answers["whole"] = server.http.post("/v1/completions", json=LONG)

        def streamed():
            body = {**LONG, "stream": True}
            with server.http.stream("POST", "/v1/completions", json=body) as answer:
                answers["lines"] = [line for line in answer.iter_lines() if line]

        os.kill(engine, signal.SIGSTOP)  # a fast machine could finish them before the kill
        threads = [in_thread(streamed), in_thread(whole)]
        time.sleep(0.5)
        os.kill(engine, signal.SIGKILL)
        killed = time.monotonic()
        health = server.http.get("/health")
        while health.status_code == 200 and time.monotonic() - killed < 1:
            health = server.http.get("/health")
        assert health.status_code == 503 and health.json()["status"] == "failed"
        for thread in threads:
            thread.join(timeout=10)
        assert time.monotonic() - killed < 2
        assert answers["whole"].status_code == 500
        assert server.exit_code() == 1
        assert "SIGKILL" in server.output


def test_a_model_that_is_not_there_is_one_clear_line(start_server):
    with start_server("--model", "/nowhere/at-all", "--log-format", "off", ready=False) as server:
        assert server.exit_code() == 1
        assert "/nowhere/at-all" in server.output and "Traceback" not in server.output


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--dtype", "float8"], "--dtype"),
        (["--block-size", "7"], "--block-size"),
        (["--no"], "--no"),
    ],
)
def test_impossible_options_are_one_line_and_exit_code_2(flags, word):
    ended = subprocess.run(
        [sys.executable, str(ROOT / "koyeb_api_server.py"), *flags], capture_output=True, text=True
    )
    assert ended.returncode == 2 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert word in line


def test_a_port_that_is_taken_is_one_line(api):
    port = api.url.rpartition(":")[2]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "koyeb_api_server.py"), "--host", "127.0.0.1", "--port", port],
        capture_output=True,
        text=True,
        env={**os.environ, "MODEL_NAME": "/nowhere"},
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert port in line
