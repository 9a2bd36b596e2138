"""A scheduler of one's own runs in the server, and the record that viewers follow shows it."""

from __future__ import annotations

import threading
import time

import pytest

from engine.llm import LLM
from tests.server.own_scheduler import Shortest

OWN = "tests.server.own_scheduler"


def admitted(server) -> list[str]:
    lines = server.http.get("/trace").text.splitlines()
    return [line for line in lines if '"request.admitted"' in line]


def wait_until(server, running: int, waiting: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        load = server.http.get("/load").json()
        if (load["num_requests_running"], load["num_requests_waiting"]) == (running, waiting):
            return
        assert time.monotonic() < deadline, load
        time.sleep(0.01)


def test_it_decides_who_runs_next(run_server):
    with run_server(scheduler_cls=f"{OWN}:Shortest", max_num_seqs=1, step_s=0.02) as server:
        lengths = (40, 30, 6, 18)  # the first one runs while the others wait
        threads = []
        for number, length in enumerate(lengths):
            fields = {"max_tokens": 100 if number == 0 else 2}
            threads.append(
                threading.Thread(target=server.complete, args=("a" * length,), kwargs=fields)
            )
            threads[-1].start()
            wait_until(server, running=1, waiting=number)
        for thread in threads:
            thread.join(timeout=20)
        sizes = [int(line.split('"num_tokens":')[1].split(",")[0]) for line in admitted(server)]
        assert sizes == [40, 6, 18, 30]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "names no class: write MODULE:CLASS"),
        ("no.such.file:Policy", "can't be imported: No module named 'no'"),
        (f"{OWN}:Longest", "has no attribute 'Longest'"),
        ("json:JSONDecoder", "is no subclass of engine.core.scheduler.Scheduler"),
    ],
)
def test_a_name_that_names_none_is_told(run_server, name, says):
    with run_server(scheduler_cls=name, wait=False) as doomed:
        doomed.wait("failed")
        detail = doomed.http.get("/health").json()["detail"]
        assert says in detail and name in detail and "Error" not in detail


def test_an_error_in_it_is_told_with_its_name(run_server):
    with run_server(scheduler_cls=f"{OWN}:Broken", wait=False) as doomed:
        doomed.wait("ready")
        answer = doomed.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert answer.status_code == 500
        assert "no such queue" in answer.json()["error"]["message"]


def test_it_goes_into_a_program_as_an_option():
    with LLM(scheduler_cls=f"{OWN}:Shortest", num_gpu_blocks_override=32) as llm:
        assert type(llm.core.scheduler) is Shortest
