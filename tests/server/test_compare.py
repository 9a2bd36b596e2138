"""The server's record beside another one: the page of two rooms, and what can't be compared."""

from __future__ import annotations

import json
import re
import time

import pytest

from engine.server.routes import compare

PATH = "/trace/compare"


@pytest.fixture(scope="module")
def told(run_server):
    with run_server(api_key=["secret"]) as server:
        server.complete("hello", max_tokens=20)
        server.wait_until_idle()
        yield server


def record(server) -> bytes:
    """The whole record; the engine process sends its events a moment late."""
    deadline = time.monotonic() + 30
    while b"request.finished" not in (lines := server.http.get("/trace").content):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return lines


def shorter(lines: bytes) -> bytes:
    """The same record, in which the request may draw a token fewer."""
    events = [json.loads(line) for line in lines.splitlines()]
    for event in events:
        if event["kind"] == "request.queued":
            event["max_tokens"] -= 1
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_another_record_leads_to_a_page_of_both(told):
    other = shorter(record(told))
    answer = told.http.post(PATH, params={"name": 'a "file".jsonl'}, content=other)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert re.search(r"decision \d+ differs:\n  first:  seq \d+: request.queued", found["text"])
    without_key = {"headers": {"Authorization": ""}}
    page = told.http.get(f"/{found['page']}", **without_key)
    assert page.status_code == 200 and page.headers["cache-control"] == "no-store"
    assert 'names":["this server","a \\"file\\".jsonl"]' in page.text
    folder = found["page"].rpartition("/")[0]
    for name in re.findall(r'<iframe src="([^"]+)"', page.text):
        room = told.http.get(f"/{folder}/{name}", **without_key)
        assert "request.finished" in room.text and "frame-ancestors" in str(room.headers)
    assert told.http.get(f"/{folder}/other.html", **without_key).status_code == 404
    assert told.http.post(PATH, content=other, **without_key).status_code == 401


def test_only_the_latest_comparisons_are_kept(told):
    other = shorter(record(told))
    pages = [
        told.http.post(PATH, content=other).json()["page"] for _ in range(compare.MOST_KEPT + 1)
    ]
    states = [told.http.get(f"/{page}").status_code for page in pages]
    assert states == [404, *[200] * compare.MOST_KEPT]


def test_what_makes_the_same_decisions_has_no_page(told):
    answer = told.http.post(PATH, content=record(told)).json()
    assert answer["page"] is None and "the same decisions" in answer["text"]


def test_what_cannot_be_compared_is_refused_with_the_reason(told, monkeypatch):
    def refused(body: bytes, status: int) -> str:
        answer = told.http.post(PATH, content=body)
        assert answer.status_code == status, answer.text
        return answer.json()["error"]["message"]

    assert "line 1: this is no event" in refused(b"hello\n", 400)
    assert "has no events" in refused(b"", 400)
    assert "--trace-buffer" in refused(b'{"kind":"engine.snapshot","standing":[]}\n', 400)
    monkeypatch.setattr(compare, "MOST_EVENTS", 3)
    assert "3 are compared here at most" in refused(record(told), 413)


def test_a_server_that_records_nothing_says_so(run_server):
    with run_server(trace="off") as server:
        answer = server.http.post(PATH, content=b"")
        assert answer.status_code == 404 and "--trace off" in answer.text
