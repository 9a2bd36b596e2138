"""The end of a process that computes with the engine ends the engine, also while nothing runs."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path

from tests.server.fake_engine import FakeExecutor

HOW = "rank 1 of 2, a process of the model, was killed by SIGKILL"


class Others:
    """Stands for the other ranks: they are lost when a file appears."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def watch(self, on_lost) -> None:
        def look() -> None:
            while not self.file.exists():
                time.sleep(0.01)
            on_lost()

        threading.Thread(target=look, daemon=True).start()

    def check(self) -> None:
        if self.file.exists():
            raise RuntimeError(HOW)


def load(file, config, recorder, progress):
    executor = FakeExecutor(0.0, 64)
    executor.others = Others(file)
    executor.close = lambda: None
    return executor


def test_an_idle_engine_fails_within_a_second_of_its_rank(run_server, tmp_path):
    file = tmp_path / "lost"
    with run_server(load=partial(load, file)) as doomed:
        answer = doomed.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        assert answer.status_code == 200
        file.touch()
        lost = time.monotonic()
        while doomed.service.client.state == "ready" and time.monotonic() - lost < 20:
            time.sleep(0.01)
        assert time.monotonic() - lost < 20  # a second, where no other program wants the cores
        assert doomed.service.client.state == "failed" and HOW in doomed.service.client.stage
        doomed.thread.join(timeout=20)  # it ends by itself
        assert not doomed.thread.is_alive()
