"""Two records on one page: a step in one moves the other; the difference is in the middle."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from engine.trace import events as ev
from engine.trace.__main__ import main
from engine.trace.diff import where_they_part
from engine.trace.files import read_all, to_jsonl
from tests.browser.conftest import need
from tests.browser.room_page import ROOT, caught_up, until
from tests.browser.seen_by_all import (
    axe_source,
    low_contrast,
    overflow,
    small_targets,
    violations,
)

RECORDS = ROOT / "docs" / "records"
ONE, OTHER = RECORDS / "crowd.jsonl", RECORDS / "crowd-recompute.jsonl"


@pytest.fixture(scope="module")
def difference():
    return where_they_part(read_all(ONE), read_all(OTHER))


@pytest.fixture(scope="module")
def both_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    assert main(["diff", str(ONE), str(OTHER), "-o", str(folder)]) == 1
    return folder / "index.html"


def rooms(page):
    """The two frames, when both show the decision that differs."""
    until(page, "document.querySelectorAll('tbody td')[1].innerText !== ''")
    return [
        next(f for f in page.frames if f.url.endswith(f"/{n}.html")) for n in ("first", "second")
    ]


def where(frame) -> int:
    return frame.evaluate("room.record.position")


def step(frame) -> int:
    return frame.evaluate("room.record.state.step")


def test_the_decision_is_in_the_middle_and_both_rooms_show_it(open_room, both_file, difference):
    page = open_room(both_file.as_uri())
    one, other = rooms(page)
    for frame, side, decision in (
        (one, "first", difference.first),
        (other, "second", difference.second),
    ):
        until(frame, f"room.selection.request === {decision.request_id!r}")
        event = frame.evaluate("room.record.entries[room.record.position - 1]")
        assert (event["seq"], event["kind"]) == (decision.seq, "request.preempted")
        assert page.inner_text(f".decision .{side}") == decision.words
    box = page.locator("main").bounding_box()
    assert box["x"] > 300 and box["x"] + box["width"] < 1440 - 300
    assert "preemptions" in page.inner_text(".followed") or "steps" in page.inner_text(".followed")
    page.click(".on")
    after = difference.first.step + 1
    until(page, f"document.querySelector('tbody td').innerText === '{after}'")
    page.click(".there")
    until(one, f"room.record.entries[room.record.position - 1].seq === {difference.first.seq}")


def test_a_step_in_either_room_moves_the_other(open_room, both_file, difference):
    page = open_room(both_file.as_uri())
    one, other = rooms(page)
    start = difference.first.step
    one.focus(".forward")
    for moved, by in ((one, other), (other, one)):
        moved.click(".forward")
        until(by, f"room.record.state.step === {start + 1}")
        moved.evaluate("room.goToStep(7)")
        until(by, "room.record.state.step === 7")
        moved.evaluate(f"room.goToStep({start})")
        until(by, f"room.record.state.step === {start}")
    page.focus(".on")
    page.keyboard.press("ArrowRight")  # on the middle it moves both
    for frame in (one, other):
        until(frame, f"room.record.state.step === {start + 1}")
    page.select_option("select", "")
    one.evaluate("room.goToStep(3)")
    until(page, "document.querySelector('tbody td').innerText === '3'")
    assert step(other) == start + 1  # not at all
    other.evaluate("room.goToStep(9)")  # what `one` told would have come before this
    until(page, "document.querySelectorAll('tbody td')[1].innerText === '9'")
    assert step(one) == 3


@contextmanager
def served_slowly(folder):
    """Serve a comparison whose page ends only when it is told so: yield its address, and how."""
    go_on = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = (folder / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            end = body.index(b"</body>") if self.path == "/index.html" else len(body)
            self.wfile.write(body[:end])
            self.wfile.flush()
            if end < len(body):
                go_on.wait(60)
            self.wfile.write(body[end:])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/index.html", go_on.set
        finally:
            go_on.set()
            server.shutdown()


def test_rooms_that_opened_before_the_middle_are_led_too(open_room, both_file, difference):
    page = open_room("file:///dev/null")
    with served_slowly(both_file.parent) as (url, go_on):
        page.goto(url, wait_until="commit")
        for name in ("first", "second"):
            while not (found := [f for f in page.frames if f.url.endswith(f"/{name}.html")]):
                page.wait_for_timeout(50)
            until(found[0], "globalThis.room?.record.position > 0")
        assert page.evaluate("document.readyState") == "loading"
        go_on()
        page.wait_for_selector("tbody td")
        one, other = rooms(page)
        for frame, decision in ((one, difference.first), (other, difference.second)):
            until(frame, f"room.record.entries[room.record.position - 1].seq === {decision.seq}")
            until(frame, f"room.selection.request === {decision.request_id!r}")


def test_what_a_room_said_before_it_was_led_moves_nobody(open_room, both_file):
    """It was under way while the page asked both to go elsewhere: rooms open in two moments."""
    page = open_room(both_file.as_uri())
    one, other = rooms(page)
    other.evaluate(
        "addEventListener('message', ({ data }) => (globalThis.steps ??= []).push(data.step)), 0"
    )
    one.evaluate(
        "parent.postMessage({ glasshouse: 'moment', led: true, heard: 0, position: 9, step: 3,"
        " arrived: 0, since: 0 }, '*')"
    )
    until(page, "document.querySelector('tbody td').innerText === '3'")
    one.evaluate("room.goToStep(7)")
    until(other, "room.record.state.step === 7")
    assert other.evaluate("globalThis.steps") == [7]


def test_rooms_go_together_by_arrival(open_room, tmp_path):
    """The second record begins with steps that the first one lacks: step numbers mean nothing."""
    events = read_all(ONE)
    second = next(i for i, event in enumerate(events) if event.step == 2)
    shifted = [*events[:second]]
    for event in events[second:]:
        fields = {"step": event.step + 5} if event.step else {}
        shifted.append(
            type(event)(**{f: getattr(event, f) for f in event.__struct_fields__} | fields)
        )
    late = tmp_path / "late.jsonl"
    late.write_bytes(to_jsonl(shifted))
    assert main(["diff", str(ONE), str(late), "-o", str(tmp_path / "both")]) == 1
    page = open_room((tmp_path / "both" / "index.html").as_uri())
    one, other = rooms(page)
    page.select_option("select", "arrival")
    for number in (12, 30):
        one.evaluate(f"room.goToStep({number})")
        until(other, f"room.record.state.step === {number + 5}")
    other.evaluate("room.goToStep(20)")
    until(one, "room.record.state.step === 15")
    assert where(one) == where(other)


def test_the_page_of_two_is_for_everybody(open_room, both_file):
    script = axe_source()
    need(script, "axe-core: pip install axe-playwright-python")
    assert script is not None
    for theme in ("light", "dark"):
        page = open_room(both_file.as_uri(), color_scheme=theme)
        rooms(page)
        assert violations(page, script.read_text(encoding="utf-8")) == []
        assert small_targets(page) == [] and low_contrast(page) == []
        page.set_viewport_size({"width": 390, "height": 844})
        assert overflow(page) <= 0


def test_the_live_page_leads_to_its_record_beside_a_file(open_room, start_server, tmp_path):
    """With a key, which frames can't send; what can't be compared is said on the page."""
    flags = ("--num-gpu-blocks-override", "40", "--api-key", "secret")
    with start_server(*flags, api_key="secret") as server:
        server.complete("What is a block table?", max_tokens=12, ignore_eos=True)
        server.wait_until_idle()
        page = open_room(server=server)
        page.wait_for_selector("#key-dialog:not([hidden])")
        page.fill("#key-dialog input", "secret")
        page.click("#key-dialog button")
        page.wait_for_selector("#status[data-state=live]")
        caught_up(page, server)
        same = tmp_path / "same.jsonl"
        same.write_bytes(server.http.get("/trace").content)
        page.set_input_files("#other-file", str(same))
        until(page, "/the same decisions/.test(document.querySelector('#notice').innerText)")
        events = read_all(same)
        for event in events:
            if isinstance(event, ev.RequestQueued):
                event.max_tokens = 11
        other = tmp_path / "other.jsonl"
        other.write_bytes(to_jsonl(events))
        page.set_input_files("#other-file", str(other))
        page.wait_for_selector(".decision")
        one, _second = rooms(page)
        assert "max_tokens 12" in page.inner_text(".decision .first")
        assert "max_tokens 11" in page.inner_text(".decision .second")
        until(one, "room.record.entries[room.record.position - 1].kind === 'request.queued'")
        page.go_back()
        page.wait_for_selector("#status[data-state=live]")
        page.errors[:] = [said for said in page.errors if "401" not in said]  # refused once
        page.context.close()  # before its server is gone
