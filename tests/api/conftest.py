"""The real server process, with a small random Llama on the CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.server.tiny_tokenizer import END, VOCAB_SIZE, save_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]

LISTENS = re.compile(r"^Glasshouse listens on (http://\S+)$", re.MULTILINE)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "tiny-llama"
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        eos_token_id=END,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


class ServerProcess:
    """`koyeb_api_server.py` as a platform starts it."""

    def __init__(self, *flags: str, env: dict[str, str] | None = None, api_key: str = ""):
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "koyeb_api_server.py"), "--port", "0", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",  # it must not need to be started from its own folder
            env={**os.environ, "CPU_THREADS": "1", "HOST": "127.0.0.1", **(env or {})},
        )
        self.output = ""
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()
        self.url = self._wait_for(lambda: LISTENS.search(self.output), 60)[1]
        self.bound_after = time.monotonic() - self.started
        self.api_key = api_key
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def _read(self) -> None:
        with self.process.stdout as lines:  # closed where it ends, also if the start failed
            for line in lines:
                self.output += line

    def _wait_for(self, condition, timeout_s: float):
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            ended = self.process.poll() is not None and not self._reading.is_alive()
            if ended or time.monotonic() > deadline:
                raise TimeoutError(f"exit code {self.process.poll()}, output:\n{self.output}")
            time.sleep(0.02)
        return result

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            try:
                return self.http.get("/health").status_code == 200
            except httpx.TransportError:  # it has ended: _wait_for shows its output
                return False

        self._wait_for(ready, 120)

    def wait_until_idle(self, timeout_s: float) -> None:
        def idle() -> bool:
            load = self.http.get("/load").json()
            return not load["kv_blocks"]["used"] and not load["num_requests_running"]

        self._wait_for(idle, timeout_s)

    def engine_pid(self) -> int:
        """The engine process: the child that runs `engine_main`."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        for child in Path(children).read_text().split():
            if b"engine_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
        raise LookupError("there is no engine process")

    def complete(self, prompt, **fields) -> dict:
        answer = self.http.post("/v1/completions", json={"prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        """Signal the server and return its exit code."""
        self.process.send_signal(with_signal)
        return self.exit_code()

    def exit_code(self, timeout_s: float = 30) -> int:
        code = self.process.wait(timeout=timeout_s)
        self._reading.join(timeout=5)
        return code

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.end()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def start_server(model_folder):
    """`with start_server("--max-num-seqs", "1") as server:`"""

    @contextmanager
    def start(*flags: str, ready: bool = True, **options):
        server = ServerProcess(
            "--model", str(model_folder), "--kv-cache-memory-bytes", "4000000", *flags, **options
        )
        try:
            if ready:
                server.wait_until_ready()
            yield server
        finally:
            server.close()

    return start


@pytest.fixture(scope="session")
def api(start_server):
    """One server for all tests that don't end it."""
    with start_server(api_key="test-key", env={"API_KEY": "test-key"}) as server:
        yield server
        code = server.end()
    assert code == 0, server.output
    assert "test-key" not in server.output
