"""The engine's loop for one server, without processes."""

from __future__ import annotations

import socket
import threading

import pytest

from engine.config import EngineConfig
from engine.core.engine_core import EngineCore
from engine.server.link import wire
from engine.server.link.channel import Channel
from engine.server.link.engine_loop import EngineLoop
from engine.trace.recorder import Recorder
from tests.server.fake_engine import FakeExecutor

MANY = 2_000  # calls: some hundred bytes fill a socket


@pytest.fixture
def loop():
    ends = socket.socketpair()
    recorder = Recorder("off", thread=False)
    core = EngineCore(EngineConfig(), FakeExecutor(0, 16), recorder)
    made = EngineLoop(core, Channel(ends[1], wire.decode_order))
    yield made
    for end in (*ends, *(made._woken or ())):
        end.close()


def sleep_until_called(loop, calls):
    threading.Timer(0.05, loop._later, [lambda: calls.append("woke it")]).start()
    loop._sleep()
    loop._call()


def test_calls_are_taken_however_long_the_loop_has_work(loop):
    """A loop that never sleeps reads no wake-up; who calls must not wait for that."""
    calls = []
    sleep_until_called(loop, calls)
    caller = threading.Thread(
        target=lambda: [loop._later(lambda: calls.append(1)) for _ in range(MANY)], daemon=True
    )
    caller.start()
    caller.join(10)
    assert not caller.is_alive(), "a call waits for the loop to sleep"
    loop._call()
    assert len(calls) == MANY + 1
    sleep_until_called(loop, calls)  # and it still sleeps and wakes
    assert calls[-1] == "woke it"
