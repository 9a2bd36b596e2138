"""Start, wait for and stop a real server, for the scripts and tests of the documents."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120
LISTENS = re.compile(r"listens on (http://\S+)")


def environment() -> dict[str, str]:
    """Return the environment for started programs: the engine's defaults, and threads that sleep.

    Threads that spin while they wait cost a busy machine a hundred times as much.
    """
    return {**os.environ, "MODEL_NAME": "", "API_KEY": "", "OMP_WAIT_POLICY": "passive"}


class LocalServer:
    """Run `koyeb_api_server.py` on a free port of this machine. Raises RuntimeError if it ends
    early.

    with LocalServer("--model", "pocket/model") as server:
        httpx.get(f"{server.url}/health")
    """

    def __init__(self, *flags: str) -> None:
        command = [sys.executable, "koyeb_api_server.py", "--host", "127.0.0.1", "--port", "0"]
        self.output: list[str] = []
        self.exit_code: int | None = None
        self._urls: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [*command, *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:  # closed where it ends, also if the start failed
            for line in lines:
                self.output.append(line)
                if found := LISTENS.search(line):
                    self._urls.put(found[1])

    def __enter__(self) -> LocalServer:
        deadline = time.monotonic() + START_TIMEOUT_S
        self.url = ""
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                self.url = self.url or self._urls.get(timeout=0.1)
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except (queue.Empty, httpx.TransportError):
                pass
            time.sleep(0.1)
        self._process.kill()
        self._process.wait()
        self._reading.join()
        raise RuntimeError("the server did not become ready:\n" + "".join(self.output[-20:]))

    def __exit__(self, *exception: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self.exit_code = self._process.wait(timeout=60)
        self._reading.join()
