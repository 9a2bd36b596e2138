"""The record over HTTP: stream, resumption, viewers that fall behind, state, lives, Perfetto."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from engine.server.record import viewers as viewers_module
from engine.server.record.record_window import RecordWindow
from engine.server.record.viewers import Viewer, Viewers
from engine.trace.events import BlockAllocated, EngineKvSized, EngineWarning, RequestQueued
from engine.trace.files import read_jsonl
from engine.trace.replay import Replay, differences


def frames(server, until, **options):
    """Frames of the stream, until `until(event, data)`: [(event, id, data)]."""
    found = []
    with server.http.stream("GET", "/trace/stream", **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields = {}
        for line in answer.iter_lines():
            name, colon, value = line.partition(": ")
            if colon and name:
                fields[name] = value
            elif not line and "data" in fields:
                data = json.loads(fields["data"])
                found.append((fields["event"], fields["id"], data))
                if until(fields["event"], data):
                    return found
                fields = {}
    raise AssertionError("the stream ended")


def has_finished(_event, data) -> bool:
    return any(event["kind"] == "request.finished" for event in data.get("events", ()))


@pytest.fixture
def told(run_server):
    with run_server() as server:
        server.complete("hello", max_tokens=20)
        server.wait_until_idle()
        time.sleep(0.2)  # the engine process sends its events every 50 ms
        yield server


def test_a_stream_is_the_record_with_the_logs_lines(told):
    first, *rest = frames(told, has_finished)
    assert first[0] == "snapshot" and first[2]["skipped"] == 0
    events = [event for _, _, data in rest for event in data["events"]]
    downloaded = [json.loads(line) for line in told.http.get("/trace").text.splitlines()]
    assert events == downloaded[: len(events)]
    lines = [line for _, _, data in rest for line in data["lines"]]
    positions = [position for position, _line in lines]
    assert positions == sorted(positions) and positions[-1] <= len(events)
    assert any("finished (length)" in line["text"] for _, line in lines)


def test_a_stream_goes_on_after_the_last_event_id(told):
    *_, (_, last_id, data) = frames(told, has_finished)
    seen = data["position"] + len(data["events"])
    told.complete("again", max_tokens=3)
    (event, _, data), *_ = frames(told, lambda *_: True, headers={"Last-Event-ID": last_id})
    assert event == "events" and data["position"] == seen
    (event, _, data), *_ = frames(told, lambda *_: True, params={"since": last_id})
    assert event == "events" and data["position"] == seen
    for other in ("another-run-7", "not a number", "ffffffff-3"):  # starts anew
        (event, _, data), *_ = frames(told, lambda *_: True, headers={"Last-Event-ID": other})
        assert event == "snapshot"


def test_the_state_at_a_step_is_the_replays(told, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(told.http.get("/trace").content)
    replay = Replay.of(read_jsonl(path))
    for step in (1, 7, replay.steps[-1]):
        answer = told.http.get("/trace/state", params={"step": step}).json()
        expected = json.loads(json.dumps(replay.state_at(step).to_dict()))
        assert not differences(expected, answer["state"])
        assert answer["position"] == replay.position
    assert told.http.get("/trace/state").json()["state"]["step"] == replay.steps[-1]
    refused = told.http.get("/trace/state", params={"step": 9999})
    assert refused.status_code == 404 and "steps 1 to" in refused.json()["error"]["message"]


def test_lives_and_perfetto(told):
    (request,) = told.http.get("/trace/requests").json()["requests"]
    life = told.http.get(f"/trace/requests/{request}").json()
    assert life["text"] == "hello" and life["sequences"][request]["finish_reason"] == "length"
    assert told.http.get("/trace/requests/nobody").status_code == 404


def test_why_a_request_was_slow_reaches_from_its_arrival_to_its_last_byte(told):
    (request,) = told.http.get("/trace/requests").json()["requests"]
    answer = told.http.get(f"/trace/why/{request}").json()
    parts = {part["cause"]: part["ns"] for part in answer["parts"]}
    assert answer["ended"] and sum(parts.values()) == answer["whole_ns"]
    assert {"tokenizing", "to the engine", "loop", "detokenizing", "sending"} <= parts.keys()
    assert "to its last byte" in answer["lines"][0]
    assert told.http.get("/trace/why/nobody").status_code == 404
    names = {event["name"] for event in told.http.get("/trace/perfetto").json()["traceEvents"]}
    assert {"step 1", "KV blocks", "waiting", "running"} <= names


def test_tokens_have_their_texts(told):
    answer = told.http.get("/trace/tokens", params={"ids": "104,105"}).json()
    assert answer == {"104": "h", "105": "i"}
    assert told.http.get("/trace/tokens", params={"ids": "1,x"}).status_code == 400


def test_the_page_is_open_and_the_record_is_not(run_server):
    with run_server(api_key="open-sesame") as guarded:
        with httpx.Client(base_url=guarded.url) as stranger:
            page = stranger.get("/")
            assert page.status_code == 200 and "Engine Room" in page.text
            assert "default-src 'self'" in page.headers["content-security-policy"]
            script = stranger.get("/room/main.js")
            assert script.status_code == 200 and "javascript" in script.headers["content-type"]
            assert stranger.get("/room/..%2f..%2fauth.py").status_code in (401, 404)
            assert stranger.get("/room/main.py").status_code == 404
            paths = ["stream", "state", "perfetto", "requests", "requests/x", "tokens", "viewers"]
            for path in paths:
                assert stranger.get(f"/trace/{path}").status_code == 401
        assert guarded.http.get("/trace/viewers").json() == {"num_viewers": 0, "num_skipped": 0}


def test_nothing_to_stream_without_a_record(run_server):
    with run_server(trace="off") as silent:
        answer = silent.http.get("/trace/stream")
        assert answer.status_code == 404 and "--trace off" in answer.json()["error"]["message"]


def test_a_viewer_does_not_delay_the_servers_end(run_server):
    with run_server() as server:
        server.complete("a", max_tokens=1)
        with server.http.stream("GET", "/trace/stream") as answer:
            lines = answer.iter_lines()
            next(lines)
            server.service.draining = True
            started = time.monotonic()
            assert "data: [DONE]" in list(lines)
            assert time.monotonic() - started < 2
            server.service.draining = False


# ------------------------------------------------------------------------------ windows, viewers


def stamped(events, first=1):
    for seq, event in enumerate(events, start=first):
        event.seq, event.ts_ns, event.step = seq, seq * 1000, 1
    return events


def test_what_leaves_the_window_is_folded():
    window = RecordWindow(capacity=3)
    window(stamped([EngineKvSized(num_blocks=4, block_size=16)]))
    window(stamped([RequestQueued(request_id="a", rank=[0, 1, 0])], first=2))
    for block in range(4):
        event = BlockAllocated(request_id="a", blocks=[block], index=block)
        window(stamped([event], first=3 + block))
    assert window.span == (4, 6) and len(window.lines()) == 3
    now = window.state_at(None)
    assert now["position"] == 6 and now["state"]["tables"] == {"a": [0, 1, 2, 3]}
    assert now["ranks"] == {"a": [0, 1, 0]}
    assert [type(event) for event in now["standing"]] == [EngineKvSized, RequestQueued]
    assert window.after(5, 10) == window.lines()[-1:] and window.after(6, 10) == []
    assert window.after(3, 2) == window.lines()[:2] and window.after(2, 10) is None


def frame_of(piece: bytes) -> tuple[str, dict]:
    event, _identity, data = piece.decode().strip().split("\n")
    return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def test_a_viewer_that_falls_behind_is_set_forward_and_told_so(monkeypatch):
    monkeypatch.setattr(viewers_module, "BEHIND", 10)
    window = RecordWindow(capacity=1000)
    viewers = Viewers(window, "run", lambda: False)
    viewer = Viewer(viewers, None)
    window(stamped([EngineKvSized(num_blocks=4, block_size=16)]))
    assert frame_of(viewer.next_frame())[0] == "snapshot"
    assert frame_of(viewer.next_frame())[1]["position"] == 0
    assert viewer.next_frame() == b""
    window(stamped([EngineWarning(message="x") for _ in range(5)], first=2))
    assert len(frame_of(viewer.next_frame())[1]["events"]) == 5
    window(stamped([EngineWarning(message="x") for _ in range(30)], first=7))
    event, data = frame_of(viewer.next_frame())
    assert event == "snapshot" and data["skipped"] == 30 and data["position"] == 36
    assert data["snapshot"]["state"]["references"] == [0, 0, 0, 0]
    assert viewers.num_skipped == 30
    window(stamped([EngineWarning(message="y")], first=37))
    assert frame_of(viewer.next_frame())[1]["events"][0]["message"] == "y"


def test_one_who_joins_far_back_is_not_taken_for_a_slow_one():
    """The stream begins up to HISTORY events back: events during catching up must not count as a
    gap."""
    window = RecordWindow(capacity=2 * viewers_module.HISTORY)
    viewers = Viewers(window, "run", lambda: False)
    window(stamped([EngineWarning(message="x") for _ in range(viewers_module.HISTORY)]))
    viewer = Viewer(viewers, None)
    assert frame_of(viewer.next_frame())[1]["position"] == 0
    window(stamped([EngineWarning(message="y") for _ in range(20)], viewers_module.HISTORY + 1))
    seen = []
    while frame := viewer.next_frame():
        event, data = frame_of(frame)
        assert event == "events"
        seen += data["events"]
    assert len(seen) == viewers_module.HISTORY + 20 and viewers.num_skipped == 0


def test_there_is_a_most_of_viewers():
    viewers = Viewers(RecordWindow(10), "run", lambda: False)
    for _ in range(viewers_module.MOST_VIEWERS):
        viewers.join()
    with pytest.raises(OverflowError, match="watch already"):
        viewers.join()
    viewers.leave()
    viewers.join()
