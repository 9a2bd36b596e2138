"""The client against a server that answers as both do, and the worker's lines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.peers import client, install, limits, vllm
from benchmarks.peers.install import Peers
from benchmarks.workloads import Job, Workload, workloads

ROOT = Path(__file__).resolve().parents[2]


class Answering(BaseHTTPRequestHandler):
    """Streams one event a token, then the usage. A prompt that begins with 13 gets one token less,
    one with 14 is refused.
    """

    protocol_version = "HTTP/1.1"
    asked: list[dict] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body["prompt"][0] == 14:
            self.send_error(400, "no")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = body["max_tokens"] - (body["prompt"][0] == 13)
        for number in range(count):
            self._event({"choices": [{"text": f" {number}"}], "usage": None})
        self._event({"choices": [], "usage": {"completion_tokens": count}})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event):
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Answering.asked.clear()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_all_requests_at_once_are_answered_and_timed(port):
    jobs = [Job([1, 2, n], n + 1) for n in range(8)]
    run = client.run(Workload("x", "", jobs), "127.0.0.1", port, "m")
    assert len(run.ends_s) == 8
    assert 0 < run.first_token_s <= min(run.ends_s) <= max(run.ends_s) <= run.total_s
    assert sorted(body["max_tokens"] for body in Answering.asked) == list(range(1, 9))
    assert all(body["ignore_eos"] and not body["cache_prompt"] for body in Answering.asked)


@pytest.mark.parametrize(("first", "why"), [(13, "4 tokens came"), (14, "400")])
def test_a_missing_token_or_a_refusal_is_an_error(port, first, why):
    with pytest.raises(client.WrongAnswer, match=why):
        client.run(Workload("x", "", [Job([first], 5)]), "127.0.0.1", port, "m")


def test_an_answer_without_usage_is_an_error():
    with pytest.raises(client.WrongAnswer, match="no usage"):
        client.completion_tokens(b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": []}\n\n')


def test_nothing_of_a_peer_is_imported_by_asking_for_the_workers_help():
    code = "import sys, benchmarks.peers.worker; print(*({'torch', 'engine'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == [], done.stderr


def test_vllm_gets_the_cores_and_the_memory_of_the_others():
    settings = vllm.settings(2, [0, 3, 5])
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == "0,3"
    assert int(settings["VLLM_CPU_KVCACHE_SPACE"]) * 2**30 == limits.CACHE_BYTES


def test_every_workload_fits_the_limits():
    for work in workloads(1000).values():
        longest = max(len(job.prompt) + job.num_output for job in work.jobs)
        assert longest <= min(limits.MAX_MODEL_LEN, limits.LLAMA_SLOT_TOKENS)


def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    peers = Peers(root=tmp_path)
    assert not peers.has_vllm and not peers.has_llama
    monkeypatch.setattr(install.shutil, "which", lambda name: None)
    with pytest.raises(install.NotInstalled, match="no cmake"):
        install.install_llama(peers, 1)
    monkeypatch.setattr(install, "LOGS", tmp_path)
    with pytest.raises(install.NotInstalled, match=r"(?s)failed.*hopeless"):
        install._run("x", [sys.executable, "-c", "raise SystemExit('hopeless')"])


def test_what_configures_tiles_is_kept_by_the_compiler(tmp_path):
    source = tmp_path / "mmq.cpp"
    source.write_text(f"    tc.rows[0] = 8;\n{install.LOADED}\n    done = true;\n")
    for _ in range(2):  # the second time changes nothing
        install.keep_tile_configuration(source)
        lines = source.read_text().splitlines()
        assert lines[1:3] == [install.KEPT, install.LOADED] and len(lines) == 4
