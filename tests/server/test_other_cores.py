"""The server's threads leave the engine's core, and come back."""

import os
import threading

import pytest

from engine.server.link.other_cores import OtherCores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs threads that can be bound, and two CPUs",
)


def test_all_threads_leave_and_come_back():
    before = os.sched_getaffinity(0)
    first = min(before)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    cores = OtherCores()
    try:
        cores.leave([first])
        assert os.sched_getaffinity(0) == before - {first}
        assert os.sched_getaffinity(thread.native_id) == before - {first}
    finally:
        cores.come_back()
        assert os.sched_getaffinity(0) == before == os.sched_getaffinity(thread.native_id)
        done.set()
        thread.join()


@pytest.mark.parametrize("own", [[], "all"])
def test_nothing_is_left_when_nothing_would_remain(own):
    before = os.sched_getaffinity(0)
    cores = OtherCores()
    cores.leave(sorted(before) if own else [])
    assert os.sched_getaffinity(0) == before
    cores.come_back()
    assert os.sched_getaffinity(0) == before
