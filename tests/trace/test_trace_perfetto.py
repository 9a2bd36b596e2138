"""Chrome Trace Event JSON: valid, nested, with flows that bind to slices, and counters; and the
life of a request.
"""

from __future__ import annotations

import json
from collections import defaultdict

import pytest

from engine.trace import events as ev
from engine.trace.life import life_of, requests_of
from engine.trace.perfetto import ENGINE, FIRST_REQUEST, REQUESTS, to_perfetto
from tests.trace.example_events import ID, stamped
from tests.trace.model_engine import ModelEngine


def model_events(seed: int, operations: int = 400) -> list[ev.Event]:
    engine = ModelEngine(20, 8, seed)
    for _ in range(operations):
        engine.random_operation()
    return engine.events


def overlapped_events() -> list[ev.Event]:
    """Two requests decoding while the next step is always planned before the last one is booked."""
    events: list[ev.Event] = []
    now = 10**9

    def add(event: ev.Event, us: int) -> None:
        nonlocal now
        now += us * 1000
        event.seq, event.ts_ns = len(events) + 1, now
        events.append(event)

    def plan(step: int) -> None:
        rows = [ev.StepRow(name, step, 1, 1) for name in ("a", "b")]
        add(ev.StepPlanned(step=step, rows=rows, budget=8, budget_used=2, num_running=2), 100)

    for number, name in enumerate("ab"):
        add(ev.RequestQueued(request_id=name, rank=[0, number]), 5)
        add(ev.RequestAdmitted(request_id=name), 5)
    plan(1)
    for step in range(1, 21):
        plan(step + 1)
        if step == 20:
            add(ev.RequestFinished(request_id="a", step=21, reason="length"), 900)
        add(
            ev.StepFinished(
                step=step,
                num_tokens=2,
                schedule_us=90,
                forward_us=800,
                sample_us=60,
                update_us=150,  # booked while the next step is computed
                total_us=1900,
                loop="overlapped",
            ),
            900,
        )
    return events


RECORDS = [stamped(), overlapped_events(), *(model_events(seed) for seed in range(6))]


@pytest.fixture(params=range(len(RECORDS)))
def trace(request):
    document = json.loads(to_perfetto(RECORDS[request.param]))
    assert document["displayTimeUnit"] == "ms"
    return document["traceEvents"]


def slices_by_track(trace):
    tracks = defaultdict(list)
    for item in trace:
        if item["ph"] == "X":
            tracks[item["pid"], item["tid"]].append(item)
    return tracks


def test_every_item_is_well_formed(trace):
    for item in trace:
        assert {"ph", "pid", "tid", "name"} <= set(item)
        assert item["ph"] in "XCMsfi"
        if item["ph"] != "M":
            assert item["ts"] >= 0
        if item["ph"] == "X":
            assert item["dur"] >= 0
        if item["ph"] == "C":
            assert item["args"] and all(isinstance(v, int) for v in item["args"].values())


def test_slices_of_a_track_nest(trace):
    """Sorted by start, longest first, each lies inside of the open one or begins after its end."""
    for track, slices in slices_by_track(trace).items():
        open_ends = []
        for item in sorted(slices, key=lambda s: (s["ts"], -s["dur"])):
            start, end = item["ts"], item["ts"] + item["dur"]
            while open_ends and open_ends[-1] <= start + 1e-6:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1] + 2e-3, (track, item)
            open_ends.append(end)


def test_every_flow_begins_and_ends_in_a_slice(trace):
    tracks = slices_by_track(trace)
    starts = {item["id"]: item for item in trace if item["ph"] == "s"}
    ends = {item["id"]: item for item in trace if item["ph"] == "f"}
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        end = ends[number]
        assert start["pid"] == REQUESTS and end["pid"] == ENGINE and end["bp"] == "e"
        assert (start["name"], start["cat"]) == (end["name"], end["cat"])
        assert end["ts"] >= start["ts"]
        for item in (start, end):
            assert any(
                s["ts"] - 1e-3 <= item["ts"] <= s["ts"] + s["dur"] + 1e-3
                for s in tracks[item["pid"], item["tid"]]
            ), item


def test_every_used_track_has_a_name(trace):
    named = {(i["pid"], i["tid"]) for i in trace if i["ph"] == "M" and i["name"] == "thread_name"}
    assert {(i["pid"], i["tid"]) for i in trace if i["ph"] in "Xi"} <= named


def test_no_track_is_taken_for_a_main_thread(trace):
    """Perfetto does that with a track that has its process's number, and puts it first."""
    assert all(i["tid"] != i["pid"] for i in trace if i["ph"] != "M" or i["tid"])


def test_steps_shares_and_counters_are_all_there():
    events = model_events(3)
    items = json.loads(to_perfetto(events))["traceEvents"]
    finished = [e for e in events if isinstance(e, ev.StepFinished)]
    planned = {e.step: e for e in events if isinstance(e, ev.StepPlanned)}
    names = [i["name"] for i in items if i["ph"] == "X" and i["pid"] == ENGINE]
    assert [n for n in names if n.startswith("step ")] == [f"step {e.step}" for e in finished]
    for part in ("schedule", "prepare", "forward", "sample", "update"):
        assert names.count(part) == len(finished)
    rows = sum(len(planned[e.step].rows) for e in finished)
    assert len([i for i in items if i["ph"] == "s"]) == rows > 50
    counters = [i for i in items if i["ph"] == "C" and i["name"] == "KV blocks"]
    assert [sum(i["args"].values()) for i in counters] == [20] * len(planned)
    host = [i["args"]["used"] for i in items if i["ph"] == "C" and i["name"] == "host blocks"]
    in_host = [e.host_blocks_used for e in planned.values()]
    first = next(place for place, used in enumerate(in_host) if used)
    assert host == in_host[first:] and 0 in host, "a pool that is empty again must show that"
    sequences = {e.request_id for e in events if isinstance(e, ev.RequestAdmitted)}
    tracks = {i["args"]["name"] for i in items if i["ph"] == "M" and i["name"] == "thread_name"}
    assert sequences <= tracks


def test_the_last_step_of_a_request_shows_its_share():
    """request.finished stands before the step.finished that books its last token."""
    items = json.loads(to_perfetto(overlapped_events()))["traceEvents"]
    decodes = [
        i for i in items if i["ph"] == "X" and i["name"] == "decode" and i["tid"] == FIRST_REQUEST
    ]
    assert [i["args"]["step"] for i in decodes] == list(range(1, 21))


@pytest.mark.parametrize("record", RECORDS[1:], ids=lambda record: f"{len(record)} events")
def test_an_arrow_points_forward_in_time(record):
    """Perfetto turns an arrow round when the slice it points to began before the one it leaves."""
    items = json.loads(to_perfetto(record))["traceEvents"]
    forwards = [i for i in items if i["ph"] == "X" and i["name"] == "forward"]
    shares = {(i["tid"], i["ts"]): i for i in items if i["ph"] == "X" and i["pid"] == REQUESTS}
    ends = {i["id"]: i for i in items if i["ph"] == "f"}
    starts = [i for i in items if i["ph"] == "s"]
    assert len(starts) == len(ends) > 0
    for start in starts:
        end = ends[start["id"]]
        (slice_,) = [
            i
            for i in forwards
            if i["tid"] == end["tid"] and i["ts"] <= end["ts"] <= i["ts"] + i["dur"]
        ]
        assert (start["tid"], start["ts"]) in shares and start["ts"] <= slice_["ts"]


# --------------------------------------------------------------------------------------------- life


def test_the_life_of_a_request_that_was_preempted():
    for seed in range(20):
        events = model_events(seed, 600)
        preempted = [e for e in events if isinstance(e, ev.RequestResumed) and e.mode == "swap"]
        finished = {e.request_id for e in events if isinstance(e, ev.RequestFinished)}
        names = [e.request_id for e in preempted if e.request_id in finished]
        names = [name for name in names if "." not in name]
        if names:
            break
    name = names[0]
    life = life_of(events, name)
    part = life["sequences"][name]
    states = [span["state"] for span in part["spans"]]
    assert states[0] == "waiting" and "preempted" in states and states[-1] == "running"
    for before, after in zip(part["spans"], part["spans"][1:]):
        assert before["end_ms"] == after["start_ms"]
    booked = {e.step for e in events if isinstance(e, ev.StepFinished)}
    rows = [
        row
        for e in events
        if isinstance(e, ev.StepPlanned) and e.step in booked
        for row in e.rows
        if row.request_id == name
    ]
    assert len(part["computed"]) + part["decode"]["steps"] == len(rows)
    assert life["preemptions"][0]["sequence"] == name
    assert part["finish_reason"] == "length"
    assert life["story"][0]["text"].startswith("queued") and life["story"][0]["at_ms"] == 0
    json.dumps(life)


def test_a_life_has_its_siblings_and_its_tokens():
    life = life_of(stamped(), ID)
    assert set(life["sequences"]) == {ID, f"{ID}.1"}
    assert life["sequences"][ID]["drawn"][0]["token_id"] == 17
    assert life["route"] == "POST /v1/chat/completions" and life["refused"]
    assert life["sequences"][ID]["spans"][0]["reasons"][0]["waits_for"] == "blocks"


def test_who_is_unknown_has_no_life():
    assert life_of(stamped(), "nobody") is None
    assert requests_of(stamped()) == [ID]
