"""The recorder: order, bounds, levels, privacy, subscribers, cost."""

from __future__ import annotations

import threading
import time
from functools import partial

import msgspec
import pytest

from engine.trace import events as ev
from engine.trace.files import unpack
from engine.trace.packing_recorder import PackingRecorder
from engine.trace.recorder import Recorder
from tests.trace.example_events import stamped


@pytest.fixture
def recorder_of(recorder_of_kind):
    return partial(recorder_of_kind, Recorder)


def test_events_are_stamped_and_ordered(recorder_of):
    recorder, got = recorder_of(src="core")
    before = time.monotonic_ns()
    recorder.step = 7
    recorder.record(ev.RequestWaiting(request_id="a"))
    recorder.record(ev.StepFinished(step=6))
    recorder.flush()
    assert [(e.seq, e.step, e.src) for e in got] == [(1, 7, "core"), (2, 6, "core")]
    assert before <= got[0].ts_ns <= got[1].ts_ns <= time.monotonic_ns()


def test_the_drain_thread_delivers_by_itself(recorder_of):
    recorder, got = recorder_of()
    recorder.record(ev.RequestWaiting())
    deadline = time.monotonic() + 5
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(got) == 1


def test_two_threads_leave_no_gap_and_no_disorder(recorder_of):
    recorder, got = recorder_of()
    each = 20_000

    def write():
        for _ in range(each):
            recorder.record(ev.RequestWaiting())

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.flush()
    assert [event.seq for event in got] == list(range(1, 2 * each + 1))
    assert recorder.dropped == 0


def test_a_time_read_before_another_thread_was_faster_does_not_go_back(recorder_of, monkeypatch):
    recorder, got = recorder_of()
    times = iter([100, 90, 95, 110])
    monkeypatch.setattr(recorder, "clock", lambda: next(times))
    for _ in range(4):
        recorder.record(ev.RequestWaiting())
    monkeypatch.undo()
    recorder.flush()
    assert [(event.seq, event.ts_ns) for event in got] == [(1, 100), (2, 100), (3, 100), (4, 110)]


@pytest.mark.parametrize("src", ["core", "server"])
def test_whoever_records_is_the_source(recorder_of, src):
    """Some kinds have "server" as their default `src`: in one process all events have one
    numbering."""
    recorder, got = recorder_of(src=src, level="full")
    recorder.record(ev.TextEmitted())
    recorder.record(ev.RequestQueued())
    recorder.flush()
    assert [event.src for event in got] == [src, src]


def test_an_event_is_numbered_when_another_wants_to_point_at_it(recorder_of):
    recorder, got = recorder_of()
    with recorder._drain_lock:  # nobody drains meanwhile
        events = [ev.RequestWaiting(), ev.GraphCaptured(batch_size=4), ev.RequestWaiting()]
        for event in events:
            recorder.record(event)
        assert recorder.number(events[1]) == 2
        recorder.record(ev.RequestWaiting())
    recorder.flush()
    assert recorder.number(events[1]) == 2
    assert [event.seq for event in got] == [1, 2, 3, 4] and got[1] is events[1]
    quiet = Recorder("off")
    assert quiet.number(ev.GraphCaptured()) == 0


def test_a_full_buffer_drops_counts_and_says_so_once(recorder_of):
    recorder, got = recorder_of(capacity=10)
    with recorder._drain_lock:  # nobody drains meanwhile
        for _ in range(25):
            recorder.record(ev.RequestWaiting())
    recorder.flush()
    recorder.record(ev.RequestWaiting())
    recorder.flush()
    assert recorder.dropped == 15
    assert [event.seq for event in got] == [*range(1, 11), 26, 27]
    assert isinstance(got[10], ev.EngineWarning) and got[10].message.startswith("15 events")
    assert len([event for event in got if isinstance(event, ev.EngineWarning)]) == 1


def test_levels_choose_kinds(recorder_of):
    everything = {type(event) for event in stamped()}
    for level, expected in [
        ("off", set()),
        ("steps", everything - set(ev.FULL_ONLY)),
        ("full", everything),
    ]:
        recorder, got = recorder_of(level=level)
        for event in stamped():
            recorder.record(event)
        recorder.flush()
        assert {type(event) for event in got} == expected
        assert recorder.enabled == (level != "off") and recorder.full == (level == "full")


def test_one_request_can_be_full(recorder_of):
    recorder, got = recorder_of()
    recorder.full_requests.add("a.b")
    assert recorder.wants_full("a.b") and recorder.wants_full("a.b.2")
    assert not recorder.wants_full("a") and not recorder.wants_full("x")
    assert not recorder.wants_full("")
    recorder.record(ev.SampleDrawn(request_id="a.b.1"))
    recorder.record(ev.SampleDrawn(request_id="x"))
    recorder.record(ev.KernelLaunched())
    recorder.full_step = True
    recorder.record(ev.KernelLaunched(name="its own"))
    recorder.flush()
    assert [ev.kind(event) for event in got] == ["sample.drawn", "kernel.launched"]


def test_off_wants_nothing(recorder_of):
    recorder, _got = recorder_of(level="off")
    recorder.full_requests.add("a")
    assert not recorder.wants_full("a")


def test_without_text_no_field_spells_any(recorder_of):
    recorder, got = recorder_of(level="full", text=False)
    secret = "s3cret"
    for event in [
        ev.RequestReceived(text=secret, params={"stop": [secret], "max_tokens": 4}),
        ev.SampleDrawn(token_id=77777, candidates=[ev.Candidate(77777, -1.0, 0.5)]),
        ev.TextEmitted(text=secret),
        ev.StopMatched(stop=secret),
        ev.ToolCalled(tool=secret),
        ev.RequestFinished(reason="stop", stop_reason=secret, why=f"stop string {secret} matched"),
    ]:
        recorder.record(event)
    recorder.flush()
    written = msgspec.json.encode(got).decode()
    assert len(got) == 6 and secret not in written and "77777" not in written
    assert got[0].params == {"max_tokens": 4}


def test_every_text_field_is_known_to_the_privacy_test():
    """A new field for text must be blanked, too: this test fails until it is listed."""
    named = {"text", "stop", "stop_reason", "token_id", "candidates", "params", "tool"}
    found = {
        (ev.kind(event), name)
        for event in ev.ALL_EVENTS
        for name in event.__struct_fields__
        if name in named
    }
    assert found == {
        ("request.received", "text"),
        ("request.received", "params"),
        ("request.finished", "stop_reason"),
        ("sample.drawn", "token_id"),
        ("sample.drawn", "candidates"),
        ("text.emitted", "text"),
        ("stop.matched", "stop"),
        ("tool.called", "tool"),
    }


def test_one_bad_event_costs_a_subscriber_one_event(recorder_of):
    """It is counted and said, the others get all, and the subscriber goes on."""
    recorder, got = recorder_of()
    taken = []

    def picky(batch):
        if any(event.request_id == "bad" for event in batch):
            raise OSError("no space left")
        taken.extend(batch)

    recorder.subscribe(picky)
    for name in ("a", "bad", "b"):
        recorder.record(ev.RequestWaiting(request_id=name))
    recorder.flush()
    recorder.record(ev.RequestWaiting(request_id="c"))
    recorder.flush()
    waiting = [event.request_id for event in taken if isinstance(event, ev.RequestWaiting)]
    assert waiting == ["a", "b", "c"]
    assert [event.seq for event in got] == [1, 2, 3, 4, 5]
    [warning] = [event for event in got if isinstance(event, ev.EngineWarning)]
    assert "no space left" in warning.message and warning.events_lost == 1
    assert recorder.events_lost == 1


def test_losses_are_told_ever_more_rarely(recorder_of):
    recorder, got = recorder_of()

    def broken(batch):
        raise OSError("no space left")

    recorder.subscribe(broken)
    for _ in range(30):
        recorder.record(ev.RequestWaiting())
        recorder.flush()
    told = [event.events_lost for event in got if isinstance(event, ev.EngineWarning)]
    assert told[:3] == [1, 2, 4] and len(told) <= 6
    assert recorder.events_lost >= 30  # the warnings that it couldn't take are counted, too


def test_an_event_that_cannot_be_packed_costs_one_event():
    sent = []
    recorder = PackingRecorder(sent.append)
    for text in ("a", "\ud83d", "b"):
        recorder.record(ev.RequestReceived(request_id="r", text=text))
    recorder.flush()
    recorder.flush()  # the warning
    recorder.close()
    events = [event for message in sent for event in unpack(message)]
    assert [event.text for event in events if isinstance(event, ev.RequestReceived)] == ["a", "b"]
    [warning] = [event for event in events if isinstance(event, ev.EngineWarning)]
    assert warning.events_lost == 1


def test_unsubscribe_and_close(recorder_of):
    recorder, got = recorder_of()

    class Bound:
        def __init__(self):
            self.got = []

        def take(self, batch):
            self.got.extend(batch)

    bound = Bound()
    recorder.subscribe(bound.take)
    recorder.unsubscribe(bound.take)
    recorder.unsubscribe(print)
    recorder.record(ev.RequestWaiting())
    recorder.close()
    recorder.record(ev.RequestWaiting())
    recorder.close()
    assert len(got) == 1 and bound.got == []


@pytest.mark.parametrize("options", [{"level": "loud"}, {"capacity": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"loud|at least 1"):
        Recorder(**options)


def test_recording_costs_microseconds_at_most(recorder_of):
    """The aim is under 1 µs on a quiet machine; a busy one gets twenty times as much."""
    recorder, _got = recorder_of(capacity=1_000_000)
    events = [ev.RequestWaiting() for _ in range(20_000)]
    started = time.perf_counter()
    for event in events:
        recorder.record(event)
    assert (time.perf_counter() - started) / len(events) < 20e-6


def test_tokens_are_read_before_they_are_named_and_once(recorder_of):
    recorder, got = recorder_of(level="full")
    asked = []

    def reader(ids):
        asked.extend(ids)
        return {token: f"<{token}>" for token in ids}

    recorder.read_tokens(reader)
    recorder.record(ev.RequestTokenized(request_id="a", token_ids=[5, 4]))
    drawn = ev.SampleDrawn(request_id="a", token_id=5, candidates=[ev.Candidate(9, -1.0, 0.3)])
    recorder.record(drawn)
    recorder.flush()
    assert [ev.kind(e) for e in got] == ["text.tokens", "request.tokenized", "sample.drawn"]
    assert got[0].texts == {4: "<4>", 5: "<5>", 9: "<9>"} and got[0].seq == 0
    assert [e.seq for e in got[1:]] == [1, 2]  # replay counts gaps by them
    recorder.record(ev.SampleDrawn(request_id="a", token_id=9))
    recorder.flush()
    assert asked == [4, 5, 9] and ev.kind(got[-1]) == "sample.drawn"


def test_a_reader_that_fails_costs_no_event(recorder_of):
    recorder, got = recorder_of(level="full")
    recorder.read_tokens(lambda ids: {}[ids[0]])
    for token in (1, 2):
        recorder.record(ev.SampleDrawn(request_id="a", token_id=token))
        recorder.flush()
    recorder.flush()
    assert [e.token_id for e in got if isinstance(e, ev.SampleDrawn)] == [1, 2]
    (warning,) = [e for e in got if isinstance(e, ev.EngineWarning)]
    assert "tokens are no longer read: KeyError" in warning.message


def test_without_text_no_token_is_read(recorder_of):
    recorder, got = recorder_of(level="full", text=False)
    recorder.read_tokens(lambda ids: pytest.fail("nobody may read them"))
    recorder.record(ev.RequestTokenized(request_id="a", token_ids=[5, 4]))
    recorder.record(ev.SampleDrawn(request_id="a", token_id=5))
    recorder.flush()
    assert got[0].token_ids == [] and got[1].token_id == -1
