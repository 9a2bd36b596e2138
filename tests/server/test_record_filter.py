"""GET /trace?request_id=…: what is about a request, all of it, and nothing else."""

from __future__ import annotations

import json
import threading
import time

import pytest

from engine.server.record.record_filter import lines_about


@pytest.fixture(scope="module")
def crowd(run_server):
    """Requests whose names begin alike, computed in the same steps."""
    with run_server(step_s=0.01) as server:
        jobs = [("told1", {}), ("told12", {}), ("told", {"n": 2}), ("other", {})]
        threads = [
            threading.Thread(
                target=server.complete,
                args=("hello",),
                kwargs={"max_tokens": 20, "request_id": name, **more},
            )
            for name, more in jobs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        server.complete(["a", "b"], max_tokens=2, request_id="pair")
        server.complete("late", max_tokens=4, request_id="late")
        server.wait_until_idle()
        time.sleep(0.3)  # the engine process sends its events every 50 ms
        yield server


def read(server, *ids: str) -> list[dict]:
    answer = server.http.get("/trace", params={"request_id": list(ids)})
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/jsonl"
    return [json.loads(line) for line in answer.text.splitlines()]


def owners(events: list[dict]) -> set[str]:
    return {event["request_id"] for event in events if event.get("request_id")}


def test_it_has_every_event_of_the_request_and_its_siblings(crowd):
    whole, part = read(crowd), read(crowd, "cmpl-told")
    assert owners(part) == {"cmpl-told", "cmpl-told.1"}
    mine = [e for e in whole if e.get("request_id") in owners(part)]
    assert [e for e in part if e.get("request_id")] == mine and len(mine) > 8
    assert {"request.received", "request.forked", "request.finished"} <= {e["kind"] for e in mine}
    assert [e for e in whole if e in part] == part, "the order is the record's"


def test_it_has_the_steps_that_computed_for_it_to_their_end(crowd):
    whole, part = read(crowd), read(crowd, "cmpl-late")
    planned = [e for e in whole if e["kind"] == "step.planned"]
    mine = [e["step"] for e in planned if any(row[0] == "cmpl-late" for row in e["rows"])]
    assert len(mine) == 4 < len(planned)
    for kind in ("step.planned", "step.finished"):
        assert [e["step"] for e in part if e["kind"] == kind] == mine


def test_a_name_is_not_the_beginning_of_another(crowd):
    assert owners(read(crowd, "cmpl-told12")) == {"cmpl-told12"}
    assert owners(read(crowd, "cmpl-told1")) == {"cmpl-told1"}
    assert owners(read(crowd, "told1")) == set()


def test_several_names_and_the_prompts_of_one_request(crowd):
    assert owners(read(crowd, "cmpl-pair")) == {"cmpl-pair", "cmpl-pair:1"}
    assert owners(read(crowd, "cmpl-late", "cmpl-other")) == {"cmpl-late", "cmpl-other"}


def test_the_engines_facts_are_always_there(crowd):
    for ids in (["cmpl-late"], ["nobody"]):
        assert "engine.kv_sized" in {event["kind"] for event in read(crowd, *ids)}
    kinds = {event["kind"].partition(".")[0] for event in read(crowd, "nobody", "x.*|.")}
    assert kinds == {"engine"}


def test_too_many_names_are_refused(crowd):
    answer = crowd.http.get("/trace", params={"request_id": ["x"] * 101})
    assert answer.status_code == 400 and answer.json()["error"]["param"].endswith("request_id")


def test_what_another_server_process_named_after_a_header_is_another_request():
    names = ["cmpl-a", "cmpl-a.1", "cmpl-a:1", "cmpl-a.p2", "cmpl-a.p2.1", "cmpl-a.p2:1"]
    lines = [b'{"kind":"request.forked","request_id":"%s"}' % name.encode() for name in names]
    assert list(lines_about(lines, ["cmpl-a"])) == lines[:3]
    assert list(lines_about(lines, ["cmpl-a.p2"])) == lines[3:]
