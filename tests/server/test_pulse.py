"""An engine that hangs is noticed; one that computes, loads, or has nothing to do is left alone."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from engine.core.messages import StepPlan
from engine.server.link.pulse import PATIENCE, Pulse, cpu_seconds
from tests.server.fake_engine import FakeExecutor, fake, load_fake

STREAM = {"prompt": "hello", "max_tokens": 400, "stream": True}


class Ticks:
    """A pulse of a 10 s timeout, with the CPU time that the test says."""

    def __init__(self, known=True):
        self.cpu_s = 0.0
        self.pulse = Pulse(10.0, lambda: self.cpu_s if known else None)

    def tick(self, elapsed_s=1.0, used_s=0.0, heard=False, owes=True):
        self.cpu_s += used_s
        return self.pulse.tick(elapsed_s, heard, owes)

    def until_hung(self, **options):
        return next(count for count in range(1, 1000) if self.tick(**options))


def test_one_that_computes_nothing_hangs_after_the_timeout():
    assert Ticks().until_hung() == 11  # the first tick only reads the CPU time
    assert Ticks().until_hung(used_s=0.001) == 11  # the thread of the record


def test_one_that_computes_gets_ten_times_as_long():
    assert Ticks().until_hung(used_s=0.9) == 10 * PATIENCE
    assert Ticks(known=False).until_hung() == 10 * PATIENCE


def test_stillness_counts_over_the_whole_silence():
    ticks = Ticks()
    for _ in range(9):  # the driver waits, a thread polls now and then
        assert not ticks.tick(used_s=0.5)
        assert not ticks.tick()
    assert "computed nothing" in (ticks.tick() or ticks.tick())


def test_news_and_having_nothing_to_do_begin_anew():
    ticks = Ticks()
    for change in ({"heard": True}, {"owes": False}):
        for _ in range(9):
            assert not ticks.tick()
        assert ticks.pulse.silent_s > 5
        assert not ticks.tick(**change)
        assert ticks.pulse.silent_s == 0
    assert all(not ticks.tick(owes=False) for _ in range(1000))


def test_a_server_that_was_stopped_itself_blames_nobody():
    ticks = Ticks()
    ticks.tick()
    assert not ticks.tick(elapsed_s=3600)
    assert ticks.pulse.silent_s < 5


def test_the_cpu_time_of_this_process():
    before = cpu_seconds(os.getpid())
    assert before is None or before > 0
    assert cpu_seconds(2**22 + 1) is None


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_stopped_engine_is_noticed_and_everybody_told(run_server):
    with run_server(step_s=0.02, engine_timeout=1.0) as doomed:
        answers = {}

        def whole():
            answers["whole"] = doomed.http.post(
                "/v1/completions", json={"prompt": "a", "max_tokens": 400}
            )

        def streamed():
            with doomed.http.stream("POST", "/v1/completions", json=STREAM) as answer:
                answers["lines"] = [line for line in answer.iter_lines() if line]

        threads = [in_thread(whole), in_thread(streamed)]
        while doomed.http.get("/load").json()["num_requests_running"] < 2:
            time.sleep(0.01)
        os.kill(doomed.service.client.pid, signal.SIGSTOP)
        silent_s = 0.0
        while doomed.service.client.state == "ready":
            health = doomed.http.get("/health").json()
            silent_s = max(silent_s, health["engine_silent_s"])
            time.sleep(0.02)
        for thread in threads:
            thread.join(timeout=10)
        assert silent_s > 0.4
        assert answers["whole"].status_code == 500
        assert "hangs" in answers["whole"].json()["error"]["message"]
        assert "hangs" in answers["lines"][-2] and answers["lines"][-1] == "data: [DONE]"
        assert doomed.http.get("/health").status_code == 503
        doomed.thread.join(timeout=15)  # it ends by itself, and with it the engine
        assert not doomed.thread.is_alive() and doomed.service.client.state == "failed"


class Busy(FakeExecutor):
    """Computes for `step_s` in each step."""

    def execute(self, plan: StepPlan):
        end = time.monotonic() + self.step_s
        while time.monotonic() < end:
            pass
        self.step_s, kept = 0, self.step_s
        try:
            return super().execute(plan)
        finally:
            self.step_s = kept


def load_busy(config, recorder, progress):
    load_fake(config, recorder, progress)
    return Busy(2.0, 64)


@pytest.mark.slow
@pytest.mark.parametrize("load", [load_busy, fake(load_s=1.5)])
def test_a_long_step_a_long_load_and_idling_are_no_hanging(run_server, load):
    with run_server(load=load, engine_timeout=0.6) as server:
        if load is load_busy:
            assert len(server.complete("a", max_tokens=1)["choices"]) == 1
        time.sleep(1.2)  # nothing to do, for twice the timeout
        assert server.complete("a", max_tokens=1) and server.service.client.state == "ready"
