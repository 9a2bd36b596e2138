"""The events of two processes in one order by time."""

from __future__ import annotations

import time
from functools import partial

import pytest

from engine.trace import events as ev
from engine.trace.merging import MARGIN_S, MergingRecorder
from tests.trace.example_events import ID


@pytest.fixture
def recorder_of(recorder_of_kind):
    return partial(recorder_of_kind, MergingRecorder)


def test_forwarded_events_keep_their_stamps_and_fall_in_line_by_time(recorder_of):
    recorder, got = recorder_of()
    now = time.monotonic_ns()
    recorder.record(ev.TextEmitted(request_id=ID))  # not wanted at steps
    recorder.record(ev.StopMatched(request_id=ID))
    recorder.forward([ev.StepFinished(seq=41, ts_ns=now - 5, step=3, src="core")])
    recorder.flush()
    assert [(e.seq, e.src, e.step) for e in got] == [(41, "core", 3), (1, "server", 0)]


def test_own_events_wait_for_older_ones_of_the_other_process(recorder_of, monkeypatch):
    """The console once showed the front end's "sends" above the step that computed the token: the
    core's events arrive a batch later than they happen."""
    monkeypatch.setattr("engine.trace.merging.MARGIN_S", 60)  # however busy this machine is
    recorder, got = recorder_of(level="full")

    def passed_on():
        with recorder._drain_lock:
            recorder._drain()
        return [ev.kind(e) for e in got]

    recorder.forward([ev.StepPlanned(seq=1, ts_ns=time.monotonic_ns(), step=1, src="core")])
    computed = ev.StepFinished(seq=2, ts_ns=time.monotonic_ns(), step=1, src="core")
    recorder.record(ev.TextEmitted(request_id=ID))
    assert passed_on() == ["step.planned"]
    recorder.forward([computed])
    assert passed_on() == ["step.planned", "step.finished"]
    recorder.forward([ev.StepPlanned(seq=3, ts_ns=time.monotonic_ns(), step=2, src="core")])
    assert passed_on()[2:] == ["text.emitted", "step.planned"]  # nothing older can come any more
    recorder.record(ev.StopMatched(request_id=ID))
    recorder.flush()
    assert ev.kind(got[-1]) == "stop.matched"  # a flush waits for nothing


def test_own_events_wait_for_a_process_that_is_busy_for_long(recorder_of, monkeypatch):
    """A step of a large model on a CPU keeps the interpreter, and so the drain thread, busy."""
    monkeypatch.setattr("engine.trace.merging.MOST_LATE_S", 120)
    recorder, got = recorder_of()
    now = time.monotonic_ns()
    recorder.forward([ev.StepFinished(seq=1, ts_ns=now - 60 * 10**9, step=1, src="core")])
    recorder.record(ev.StopMatched(request_id=ID))
    time.sleep(4 * MARGIN_S)
    recorder.forward([ev.StepFinished(seq=2, ts_ns=now, step=2, src="core")])
    recorder.flush()
    assert [e.seq for e in got if e.src == "core"] == [1, 2]
    assert ev.kind(got[-1]) == "stop.matched"


def test_own_events_wait_no_longer_than_they_must(recorder_of):
    recorder, got = recorder_of()
    recorder.forward([ev.StepFinished(seq=1, ts_ns=time.monotonic_ns(), step=1, src="core")])
    recorder.record(ev.StopMatched(request_id=ID))  # and now the core is silent
    recorder.settle()
    assert [ev.kind(e) for e in got] == ["step.finished", "stop.matched"]
    recorder.record(ev.StopMatched(request_id=ID))
    deadline = time.monotonic() + 5
    while len(got) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(got) == 3  # the drain thread needs no event to go on


def test_without_another_process_nothing_is_held_back(recorder_of):
    recorder, got = recorder_of(level="full")
    recorder.record(ev.TextEmitted(request_id=ID))
    started = time.monotonic()
    recorder.settle()
    assert len(got) == 1 and time.monotonic() - started < MARGIN_S


def test_forwarding_is_bounded_too(recorder_of):
    recorder, got = recorder_of(capacity=5)
    recorder.forward([ev.StepFinished(seq=n, src="core") for n in range(1, 9)])
    recorder.flush()
    assert recorder.dropped == 3 and len(got) == 6
    assert got[-1].message.startswith("3 events") and got[-1].seq == 1  # none of its own is missing


def test_younger_events_of_one_process_wait_for_older_ones_of_another(recorder_of, monkeypatch):
    """With several server processes the core's "queued" came before a server's "received"."""
    monkeypatch.setattr("engine.trace.merging.MARGIN_S", 60)
    recorder, got = recorder_of()
    now = time.monotonic_ns()

    def drain():
        with recorder._drain_lock:
            recorder._drain()
        return [e.seq for e in got]

    recorder.forward([ev.RequestReceived(seq=1, ts_ns=now - 9, src="server 2")])
    recorder.forward([ev.RequestQueued(seq=2, ts_ns=now - 5, src="core")])
    assert drain() == [1]
    recorder.forward([ev.RequestReceived(seq=3, ts_ns=now - 7, src="server 2")])
    assert drain() == [1, 3]
    recorder.forward([ev.RequestReceived(seq=4, ts_ns=now - 3, src="server 2")])
    assert drain() == [1, 3, 2]
    recorder.flush()
    assert [e.seq for e in got] == [1, 3, 2, 4]
