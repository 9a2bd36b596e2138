"""The server in a thread of the test's own process."""

from __future__ import annotations

import threading
import time

import httpx

from engine.config import EngineConfig
from engine.server.ending import Server
from engine.server.lifecycle import bind
from engine.server.service import Service


class RunningServer:
    """The server in a thread of this process, so that tests can look into it."""

    def __init__(self, config: EngineConfig, load, heartbeat_s: float = 10.0):
        self.listener = bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.service = Service(config, load, heartbeat_s)
        self.server = Server(self.service)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )
        self.thread.start()
        headers = {"Authorization": f"Bearer {config.api_key[0]}"} if config.api_key else {}
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=30)

    def wait(self, state: str = "ready") -> None:
        deadline = time.monotonic() + 120  # a busy machine imports slowly
        while self.http.get("/health").json()["status"] != state:
            if time.monotonic() > deadline:
                raise TimeoutError(self.http.get("/health").text)
            time.sleep(0.02)

    def complete(self, prompt, **fields) -> dict:
        answer = self.http.post("/v1/completions", json={"prompt": prompt, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refusal(self, route: str = "/v1/completions", status: int = 400, **body) -> dict:
        """The error of a request that must be refused."""
        answer = self.http.post(route, json=body)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
        return error

    def blocks_used(self) -> int:
        return self.http.get("/load").json()["kv_blocks"]["used"]

    def wait_until_idle(self, timeout_s: float = 5.0) -> None:
        deadline = time.monotonic() + timeout_s
        while self.blocks_used() or self.http.get("/load").json()["num_requests_running"]:
            assert time.monotonic() < deadline, self.http.get("/load").text
            time.sleep(0.01)

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()
