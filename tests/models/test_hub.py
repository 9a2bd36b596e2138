"""Downloads over real HTTP from a small hub on this machine, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.models.tiny_models import NATIVE, save

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CHILD = """
import json, sys
from engine.models.errors import ModelError
from engine.models.hub import find_model
for line in sys.stdin:
    reports = []
    try:
        report = lambda *parts: reports.append(parts)
        folder = find_model(line.strip(), None, None, report, sys.argv[1] or None)
        files = sorted(p.name for p in folder.iterdir())
        answer = {"folder": str(folder), "files": files, "reports": reports}
    except ModelError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Hub(ThreadingHTTPServer):
    """Answers the two questions that a download asks: which files there are, and for a file."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.sent: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if "gated" in path:
            return self.reply(403, b"no", {"X-Error-Code": "GatedRepo"}, body)
        if "/someone/gguf" in path:  # a repository of another format
            info = {"id": "someone/gguf", "sha": COMMIT, "siblings": [{"rfilename": "q4.gguf"}]}
            return self.reply(200, json.dumps(info).encode(), {}, body)
        if "/someone/tiny" not in path:
            return self.reply(404, b"no", {"X-Error-Code": "RepoNotFound"}, body)
        if path.startswith("/api/"):
            siblings = [{"rfilename": n, "size": len(c)} for n, c in self.server.files.items()]
            tree = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for n, c in self.server.files.items()
            ]
            info = {"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}
            answer = tree if "/tree/" in path else info
            return self.reply(200, json.dumps(answer).encode(), {}, body)
        name = path.rsplit("/", 1)[-1]
        content = self.server.files[name]
        if body:
            self.server.sent.append(name)
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.reply(200, content, etag, body)

    def reply(self, status: int, content: bytes, headers: dict, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(tmp_path):
    source = tmp_path / "source"
    save(NATIVE["llama"](), source)
    for name in ("pytorch_model.bin", "consolidated.safetensors", "picture.png"):
        (source / name).write_bytes(b"never wanted")
    (source / "tokenizer_config.json").write_text("{}")
    server = Hub(source)
    yield server
    server.shutdown()
    server.server_close()


class Client:
    """A process that looks for the models that it is asked for, with a cache of its own."""

    def __init__(self, url: str, home, cache: str | None = None):
        environment = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "no_proxy": "*",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, cache or ""], env=environment, **pipes
        )

    def find(self, model: str) -> dict:
        self.process.stdin.write(f"{model}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def client(hub, tmp_path):
    client = Client(hub.url, tmp_path / "home")
    yield client
    client.process.stdin.close()
    client.process.wait(timeout=30)
    client.process.stdout.close()


def test_download_into_a_folder(hub, tmp_path):
    client = Client(hub.url, tmp_path / "home", str(tmp_path / "models"))
    first = client.find("someone/tiny")
    assert first["folder"].startswith(str(tmp_path / "models"))
    assert first["reports"][-1][1] == len(hub.files["model.safetensors"]) + sum(
        len(hub.files[name]) for name in first["files"] if name != "model.safetensors"
    )
    assert not (tmp_path / "home" / "hub").exists()
    hub.shutdown()  # without a hub the folder has it still
    hub.server_close()
    assert client.find("someone/tiny")["folder"] == first["folder"]
    client.process.stdin.close()
    client.process.wait(timeout=30)
    client.process.stdout.close()


def test_download(hub, client):
    found = client.find("someone/tiny")
    wanted = {"config.json", "model.safetensors", "tokenizer_config.json"}
    assert wanted <= {*found["files"]} and wanted <= {*hub.sent}
    assert not {"pytorch_model.bin", "consolidated.safetensors", "picture.png"} & {*hub.sent}
    assert found["reports"][-1][0] == "download"
    assert found["reports"][-1][1] == found["reports"][-1][2] > len(hub.files["model.safetensors"])

    hub.sent.clear()  # what is on this machine is not downloaded again
    assert client.find("someone/tiny")["files"] == found["files"]
    assert hub.sent == []

    for model, says in {
        "someone/gated": "someone/gated is gated: accept its terms at https://huggingface.co/someone",
        "someone/gguf": "someone/gguf is a repository of GGUF files: download the one that",
        "someone/nothing": "someone/nothing is neither a local folder nor a model on the hub",
        "no such//id": "'no such//id' is neither a local folder nor a hub id",
    }.items():
        error = client.find(model)["error"]
        assert error.startswith(says) and "\n" not in error

    hub.shutdown()
    hub.server_close()  # no network from here on
    assert client.find("someone/tiny")["files"] == found["files"]
    error = client.find("someone/other")["error"]
    assert error.startswith("someone/other is not on this machine and could not be downloaded (")
    assert error.endswith("check the network, or name a local folder.") and "\n" not in error
