"""A record whose beginning was dropped is complete: its first line holds the state at its
beginning."""

from __future__ import annotations

import json
import pickle
import random
import time

import pytest

from engine.server.record.record_filter import lines_about
from engine.server.record.record_window import RecordWindow
from engine.trace import events as ev
from engine.trace.annotate import annotate
from engine.trace.context import Context
from engine.trace.files import read_jsonl, to_json
from engine.trace.life import life_of, requests_of
from engine.trace.perfetto import to_perfetto
from engine.trace.replay import Replay, differences
from tests.trace.model_engine import ModelEngine


@pytest.fixture(scope="module")
def whole() -> list[ev.Event]:
    engine = ModelEngine(20, 8, seed=11)
    for _ in range(400):
        engine.random_operation()
    return engine.events


def download(events: list[ev.Event], capacity: int, path) -> list[ev.Event]:
    """What `GET /trace` gives of a window of this capacity, through a file."""
    window = RecordWindow(capacity)
    for start in range(0, len(events), 7):
        window(events[start : start + 7])
    before, lines = window.record()
    written = [to_json(before)] if before is not None else []
    path.write_bytes(b"".join(line + b"\n" for line in [*written, *lines]))
    return list(read_jsonl(path))


@pytest.mark.parametrize("seed", range(8))
def test_replay_goes_on_exactly(whole, tmp_path, seed):
    rng = random.Random(seed)
    capacity = rng.randrange(1, len(whole))
    events = download(whole, capacity, tmp_path / "record.jsonl")
    truth, found = Replay.of(whole), Replay.of(events)
    found.check()
    assert differences(truth.to_dict(), found.to_dict()) == []
    assert found.state.planned == truth.state.planned and not found.state.lost
    snapshot = events[0]
    assert isinstance(snapshot, ev.EngineSnapshot) and snapshot.num_gone == len(whole) - capacity
    known = [step for step in found.steps if step > snapshot.step]
    for step in rng.sample(known, min(5, len(known))):
        expected = truth.state_at(step).to_dict()
        assert differences(expected, found.state_at(step).to_dict()) == []


def test_what_is_kept_of_the_past_is_bounded(monkeypatch):
    """A server folds each event that leaves its window, for as long as it runs."""
    monkeypatch.setattr("engine.trace.names.NAMES_KEPT", 16)
    engine, window = ModelEngine(20, 8, seed=3), RecordWindow(50)
    told, sizes = 0, []
    for _ in range(12):
        for _ in range(250):
            engine.random_operation()
        window(engine.events[told:])
        told = len(engine.events)
        context = window._before.context
        assert context.plans.keys() == context.state.planned.keys()
        living = 10 + len(context.state.sequences)  # a few facts are there without any
        sizes.append(len(pickle.dumps(window._before)) / living)
    assert told > 5_000 and max(sizes[1:]) < 1.2 * sizes[0], sizes


def test_it_knows_the_engine_the_living_requests_and_their_names(whole, tmp_path):
    whole = [ev.EngineModelLoaded(model="pocket", seq=0, ts_ns=1), *whole]
    truth = Context()
    middle = len(whole) // 2
    for event in whole[:middle]:
        truth.see(event)
    alive = [name for name in truth.state.sequences if "." not in name]
    assert alive
    events = download(whole, len(whole) - middle, tmp_path / "record.jsonl")
    kinds = [ev.kind(event) for event in events[0].standing]
    assert {"engine.model_loaded", "engine.kv_sized", "request.queued"} <= set(kinds)
    context = Context()
    line = annotate(events[0], context)
    assert f"the {middle:,} events before are gone" in line
    assert [context.name(name) for name in alive] == [truth.name(name) for name in alive]
    assert context.name("a-newcomer-with-a-long-id") == truth.name("a-newcomer-with-a-long-id")
    assert set(alive) <= set(requests_of(events))
    life = life_of(events, alive[0])
    assert life["num_prompt_tokens"] == life_of(whole, alive[0])["num_prompt_tokens"]
    assert life["sequences"][alive[0]]["spans"][0]["state"] == "waiting"


def test_perfetto_shows_who_ran_when_it_began(whole, tmp_path):
    events = download(whole, len(whole) // 2, tmp_path / "record.jsonl")
    running = [name for _, name in Replay.of(events[:1]).state.running]
    assert running
    out = json.loads(to_perfetto(events))["traceEvents"]
    names = {args["name"] for e in out if e["name"] == "thread_name" for args in [e["args"]]}
    context = Context()
    context.see(events[0])
    assert {context.name(name) for name in running} <= names
    assert min(e["ts"] for e in out if "ts" in e) >= 0


def test_a_request_alone_has_its_beginning_and_the_facts(whole, tmp_path):
    events = download(whole, len(whole) // 2, tmp_path / "record.jsonl")
    queued = next(e for e in events[0].standing if isinstance(e, ev.RequestQueued))
    lines = [to_json(event) for event in [*events[0].standing, *events[1:]]]
    about = [json.loads(line) for line in lines_about(lines, [queued.request_id])]
    assert [e["kind"] for e in about[:2]] == ["engine.started", "engine.kv_sized"]
    kinds = [e["kind"] for e in about if e.get("request_id") == queued.request_id]
    assert kinds[0] == "request.queued"


def test_a_gap_is_not_papered_over(whole, tmp_path):
    holed = [e for e in whole if e.seq % 50 != 0]
    events = download(holed, len(holed) // 4, tmp_path / "record.jsonl")
    assert events[0].state is None
    with pytest.raises(Exception, match="gap before it began"):
        Replay.of(events)
    assert "the state of the blocks" in annotate(events[0], Context())


def test_of_a_running_server(run_server, tmp_path):
    with run_server(trace_buffer=60) as small:
        small.complete("hello", max_tokens=60, ignore_eos=True)
        small.wait_until_idle()
        time.sleep(0.3)  # the last events come up to 50 ms after the answer
        path = tmp_path / "trace.jsonl"
        path.write_bytes(small.http.get("/trace").content)
        assert path.read_bytes().startswith(b'{"kind":"engine.snapshot"')
        replay = Replay.of(read_jsonl(path))
        replay.check()
        now = small.http.get("/trace/state").json()["state"]
        assert not differences(now, json.loads(json.dumps(replay.to_dict())))
        (request,) = small.http.get("/trace/requests").json()["requests"] or [""]
        filtered = small.http.get("/trace", params={"request_id": request or "x"}).text
        assert '"kind":"engine.kv_sized"' in filtered and "engine.snapshot" not in filtered


def test_how_many_events_were_lost_is_known_after_the_warnings_are_gone():
    window = RecordWindow(2)
    for count in (1, 2, 0):
        window([ev.EngineWarning(message="", events_lost=count)])
    window([ev.RequestReceived(request_id=str(i)) for i in range(4)])
    before, _ = window.record()
    told = [event for event in before.standing if isinstance(event, ev.EngineWarning)]
    assert [event.events_lost for event in told] == [2]
