"""No panel shows an earlier moment: what a page shows depends only on the moment, not on the way
there."""

from __future__ import annotations

import json
import random

import msgspec
import pytest

from engine.server.record.record_window import Fold
from engine.trace.__main__ import main
from engine.trace.events import EngineKvSized, EngineSnapshot
from engine.trace.files import read_jsonl, to_jsonl
from tests.browser.room_page import ROOT, caught_up, until
from tests.support.cases import mostly

CROWD = ROOT / "docs" / "records" / "crowd.jsonl"
MIDDLE = 40  # the cut record below begins there

# What each panel shows, in words, and every canvas as it is painted.
SHOWN = """() => {
  room.pipeline.calm = { matches: true };
  const panels = Object.fromEntries([...document.querySelectorAll('section.panel, #transport')]
    .map((panel) => [panel.id, panel.innerText.replace(/\\s+/g, ' ')]));
  for (const canvas of document.querySelectorAll('canvas')) {
    const name = `${canvas.closest('section').id} canvas`;
    panels[name] = canvas.hidden ? 'hidden' : canvas.toDataURL();
  }
  const notice = document.querySelector('#notice');
  panels.notice = notice.hidden ? '' : notice.innerText;
  return panels;
}"""


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """One-file rooms: the whole record, one whose beginning is gone, one with a gap."""
    folder = tmp_path_factory.mktemp("rooms")
    events = list(read_jsonl(CROWD))
    place = next(i for i, e in enumerate(events) if e.step == MIDDLE and e.src == "core")
    fold = Fold()
    for event in events[:place]:
        fold.see(event)
    gap = next(
        i for i, e in enumerate(events) if e.step > MIDDLE and "block" in type(e).__name__.lower()
    )
    records = {
        "whole": events,
        "cut": [fold.snapshot(texts=True), *events[place:]],
        "gap": [e for i, e in enumerate(events) if i != gap],
    }
    assert isinstance(records["cut"][0], EngineSnapshot)
    made = {}
    for name, its in records.items():
        path, room = folder / f"{name}.jsonl", folder / f"{name}.html"
        path.write_bytes(to_jsonl(its))
        assert main(["page", str(path), "-o", str(room)]) == 0
        made[name] = room
    return made


def settled(page) -> dict:
    """What the page shows once nothing is left to draw."""
    page.evaluate("room.redraw()")  # texts that came later, sizes that changed
    page.evaluate(
        "() => new Promise((done) => setTimeout(() => requestAnimationFrame(() => done()), 250))"
    )
    return page.evaluate(SHOWN)


@pytest.mark.parametrize("name", mostly(["whole", "cut", "gap"], "gap"))
def test_a_moment_looks_the_same_whatever_was_shown_before(open_room, rooms, name):
    page = open_room(rooms[name].as_uri())
    until(page, "room.record.lines.length > 0")
    steps = page.evaluate("room.record.steps")
    request = page.evaluate("[...room.ledger.sequences.keys()][3]")
    moments = [*random.Random(6).sample(steps, 2), steps[-1], steps[0]]
    for step in moments:  # the long way
        page.evaluate(f"room.select({{ request: {request!r}, block: 3 }}); room.goToStep({step})")
        walked = settled(page)
        fresh = open_room(f"{rooms[name].as_uri()}#step={step}&request={request}&block=3")
        until(fresh, f"room.record.lines.length > 0 && room.record.state.step === {step}")
        shown = settled(fresh)
        fresh.context.close()
        for panel in shown:
            assert walked[panel] == shown[panel], f"{panel} at step {step}"
    page.keyboard.press("Home")
    walked = settled(page)
    assert page.evaluate("room.record.position") == page.evaluate("room.record.first")
    if name != "cut":
        assert page.evaluate("room.record.state.step") == 0
        assert walked["blocks canvas"] == "hidden" and "Before the first step" in walked["step"]
        assert (
            "no KV cache yet" in walked["blocks"] or "nothing is recorded yet" in walked["blocks"]
        )


def test_one_frame_after_a_move_every_panel_shows_the_moment(open_room, rooms):
    page = open_room(rooms["whole"].as_uri())
    until(page, "room.record.lines.length > 0")
    settled(page)
    request = page.evaluate("[...room.ledger.sequences.keys()][3]")
    for step in (21, 125, 64):
        page.evaluate(f"room.select({{ request: {request!r} }}); room.goToStep({step})")
        page.evaluate("() => new Promise(requestAnimationFrame)")
        at_once = page.evaluate(SHOWN)
        assert at_once == settled(page), f"at step {step}"


def test_every_panel_is_of_the_step_that_the_page_names(open_room, rooms):
    page = open_room(rooms["whole"].as_uri())
    until(page, "room.record.lines.length > 0")
    for step in random.Random(2).sample(page.evaluate("room.record.steps"), 6):
        page.evaluate(f"room.goToStep({step})")
        shown = settled(page)
        state = page.evaluate("room.record.state.toDict()")
        used = sum(count > 0 for count in state["references"])
        assert shown["step"].startswith(f"Step {step}")
        assert f"{used} used" in shown["blocks"]
        assert f"running {len(state['running'])}" in shown["queues"]
        assert f"{len(state['running'])} run, {len(state['waiting'])} wait" in shown["pipeline"]
        assert page.input_value("#transport input[type=number]") == str(step)


def test_a_step_that_is_not_kept_is_said_and_the_first_one_is_shown(open_room, rooms):
    page = open_room(f"{rooms['cut'].as_uri()}#step=3&request=never-was-there")
    until(page, f"room.record.state.step === {MIDDLE} && room.record.lines.length > 0")
    shown = settled(page)
    assert shown["notice"].startswith(f"Step 3 is not kept: this record begins at step {MIDDLE}.")
    assert f"which begins at step {MIDDLE}, has no request never-was-there" in shown["selection"]
    assert "about never-was-there, which this record doesn't have" in shown["log"]
    assert page.evaluate("room.ledger.sequences.has('never-was-there')") is False
    assert f"{MIDDLE}–" in shown["transport"] and shown["blocks canvas"] != "hidden"
    last = page.evaluate("room.record.lastStep")
    page.evaluate("room.goToStep(100000)")
    assert f"this record ends at step {last}" in settled(page)["notice"]
    page.keyboard.press("ArrowLeft")
    assert settled(page)["notice"] == ""


def test_what_is_not_known_is_not_drawn(open_room, rooms):
    page = open_room(rooms["gap"].as_uri())
    until(page, "room.record.lines.length > 0")
    page.keyboard.press("End")
    until(page, "room.record.broken !== ''")
    shown = settled(page)
    assert shown["blocks canvas"] == "hidden" and "not known here" in shown["blocks"]
    assert "not known here" in shown["queues"] and "doesn't follow" in shown["notice"]
    page.evaluate("room.goToStep(5)")
    shown = settled(page)
    assert shown["blocks canvas"] != "hidden" and shown["notice"] == ""


def test_a_record_opened_after_another_shows_nothing_of_it(open_room, rooms, tmp_path):
    page = open_room(rooms["whole"].as_uri())
    until(page, "room.record.lines.length > 0")
    page.evaluate("room.select({ request: [...room.ledger.sequences.keys()][1] })")
    settled(page)
    page.evaluate("room.open('', 'empty.jsonl')")
    shown = settled(page)
    assert shown["blocks canvas"] == "hidden" and "nothing is recorded yet" in shown["blocks"]
    assert "Nothing was computed yet" in shown["step"] and "0 run, 0 wait" in shown["pipeline"]
    assert "holds no events" in shown["notice"]


def test_the_keys_dialog_has_its_keys_for_itself(open_room, rooms):
    page = open_room(rooms["whole"].as_uri())
    until(page, "room.record.lines.length > 0")
    page.evaluate("room.goToStep(20); room.select({ block: 2 })")
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    for key in ("ArrowLeft", "Home", "l", "."):
        page.keyboard.press(key)
    assert page.evaluate("room.record.state.step") == 20 and not page.evaluate("room.following")
    page.keyboard.press("Escape")
    assert page.locator("#keys[open]").count() == 0
    assert page.evaluate("room.selection.block") == 2, "it closed the dialog, and nothing else"
    page.keyboard.press("Escape")
    assert page.evaluate("room.selection.block") is None


def test_a_server_that_was_started_again_shows_nothing_of_the_run_before(open_room, live):
    """Steps and requests start again then: the stream's ids say that it is another run."""
    fold, state = Fold(), Fold()
    for event in read_jsonl(CROWD):
        fold.see(event)
        if isinstance(event, EngineKvSized):
            state = fold.copy()  # another run, before its first step

    def stream(run: str, of: Fold) -> str:
        frame = {"position": 1, "skipped": 0, "snapshot": msgspec.to_builtins(of.snapshot())}
        return f"event: snapshot\nid: {run}-1\ndata: {json.dumps(frame)}\n\n"

    answers = [stream("aaaa", fold), stream("bbbb", state)]

    def answer(route):
        body = answers.pop(0) if answers else ": nothing\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page = open_room("room/icon.svg", server=live)  # of the same origin, so that it can be routed
    page.route("**/trace/stream", answer)
    page.goto(f"{live.url}/")
    until(page, "room.record.lastStep > 100")
    page.evaluate("room.select({ block: 3 })")
    until(page, "room.record.lastStep === 0", timeout_s=20)
    shown = settled(page)
    assert "started again" in shown["notice"]
    assert "Before the first step" in shown["step"] and "0 used" in shown["blocks"]
    assert page.evaluate("room.record.steps.length") == 0
    assert page.evaluate("room.selection.block") is None
    page.errors[:] = [said for said in page.errors if "404" not in said]  # the icon's page has none


def test_a_step_says_only_what_is_so_of_its_kernels(open_room, live):
    plain = live.complete("without kernels", max_tokens=3)["id"]
    live.wait_until_idle()
    full = live.complete("with all of them", max_tokens=3, trace="full")["id"]
    live.wait_until_idle()
    page = open_room(server=live)
    caught_up(page, live)
    for name, every in ((plain, False), (full, True)):
        steps = page.evaluate(
            "(name) => [...room.ledger.steps.values()].filter((s) => s.plan?.rows?.some((r) => r[0]"
            " === name)).map((s) => s.number)",
            name,
        )
        assert len(steps) == 3
        for step in steps:
            page.evaluate(f"room.goToStep({step})")
            said = settled(page)["step"]
            assert ("kernel launch" in said) == every, said
            assert ("none of its requests asked for" in said) == (not every), said
