"""A class: the teaching pool, the marks on the slider, and what the buttons do on any server."""

from __future__ import annotations

import json
import re

import pytest

from engine.trace.__main__ import main
from glasshouse.command import CLASS_FLAGS
from tests.browser.room_page import ROOT, caught_up, lies_within, until
from tests.browser.seen_by_all import small_texts

RECORDS = ROOT / "docs" / "records"


@pytest.fixture(scope="module")
def classroom(start_server):
    with start_server(*CLASS_FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def crowd_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("class") / "crowd.html"
    assert main(["page", str(RECORDS / "crowd.jsonl"), "-o", str(path)]) == 0
    return path


def opened(open_room, file, where: str = ""):
    page = open_room(file.as_uri() + where)
    until(page, "room.record.lines.length > 0")
    return page


def test_the_teaching_pool_can_be_seen_and_filled(open_room, classroom):
    """Its squares are large, and the buttons do what they say: the pool overflows."""
    page = open_room(server=classroom)
    page.wait_for_selector("#status[data-state=live]")
    assert 96 <= page.evaluate("room.record.state.numBlocks") <= 256
    assert page.evaluate("room.grid.cell") >= 24
    assert page.locator(".make-small").is_hidden()
    page.click("[data-show=preempt]")
    until(page, "room.ledger.marks.some(({ name }) => name === 'preemption')", timeout_s=120)
    preempted = page.evaluate("room.record.entries.find((e) => e.kind === 'request.preempted')")
    assert page.evaluate("room.selection.request") == preempted["request_id"]
    assert preempted["request_id"].startswith("cmpl-room-")
    caught_up(page, classroom)
    page.click("[data-show=fill]")
    until(page, "room.ledger.marks.some(({ name }) => name === 'eviction')", timeout_s=120)
    caught_up(page, classroom)
    page.click("[data-show=share]")
    until(page, "room.ledger.marks.some(({ name }) => name === 'hit')", timeout_s=120)
    caught_up(page, classroom)


def test_a_large_pool_says_what_to_start(open_room, start_server):
    with start_server("--num-gpu-blocks-override", "9000", "--no-enable-prefix-caching") as server:
        page = open_room(server=server)
        page.wait_for_selector("#status[data-state=live]")
        page.wait_for_selector(".make-small:not([hidden])")
        for button in ("[data-show=fill]", "[data-show=preempt]", ".make-small-button"):
            page.click(button)
            assert "glasshouse class" in page.inner_text(".told"), button
        page.click("[data-show=share]")
        assert "--no-enable-prefix-caching" in page.inner_text(".told")
        assert page.locator(".answer").count() == 0  # nothing was sent in vain
        page.context.close()


def test_a_record_opens_at_its_first_preemption_and_the_keys_go_on(open_room, crowd_file):
    page = opened(open_room, crowd_file)
    events = [json.loads(line) for line in (RECORDS / "crowd.jsonl").read_text().splitlines()]
    kinds = {"request.preempted", "request.refused", "request.forked", "block.evicted"}
    hits = {"request.admitted", "request.resumed"}

    def is_mark(event) -> bool:
        found = event["kind"] in hits and event.get("num_cached_tokens", 0) > 0
        return event["kind"] in kinds or found

    marks = page.evaluate("room.ledger.marks.map(({ event, at }) => [event.kind, at])")
    wanted = [[event["kind"], i] for i, event in enumerate(events, 1) if is_mark(event)]
    assert marks == wanted
    first = next(event for event in events if event["kind"] == "request.preempted")
    assert page.evaluate("room.record.position") == 1 + events.index(first)
    assert page.evaluate("room.selection.request") == first["request_id"]
    stops = page.evaluate("room.marks.stops.map(({ at }) => at)")
    at = stops.index(1 + events.index(first))
    for key, place in (("n", at + 1), ("n", at + 2), ("p", at + 1), ("p", at), ("p", at - 1)):
        page.keyboard.press(key)
        assert page.evaluate("room.record.position") == stops[place]
    page.keyboard.press("p")  # before the first one
    until(page, "document.querySelector('.mark-said').innerText === 'no earlier mark'")
    page.click(".mark-on")
    assert page.evaluate("room.record.position") == stops[at]


def test_a_link_to_a_mark_carries_what_is_selected(open_room, crowd_file):
    page = opened(open_room, crowd_file)
    until(page, "room.selection.request !== null")
    page.keyboard.press("n")  # an eviction: a block is selected
    selection = page.evaluate("room.selection")
    assert selection["block"] is not None
    there = page.evaluate("room.link()")
    again = opened(open_room, crowd_file, "#" + there.partition("#")[2])
    until(again, "room.selection.block !== null")
    assert again.evaluate("room.selection") == selection
    assert again.evaluate("room.record.state.step") == page.evaluate("room.record.state.step")


def test_a_preempted_request_does_not_wait_for_an_old_reason(open_room, crowd_file):
    """At its preemption, what it waited for before its admission is past."""
    page = opened(open_room, crowd_file)
    until(page, "document.querySelector('#selection').innerText.includes('preempted')")
    assert not re.search("use all .* tokens of the step", page.inner_text("aside"))


@pytest.mark.parametrize("width, height", [(1280, 720), (853, 480)], ids=["100%", "150%"])
def test_a_presentation_is_one_screen_in_large_type(open_room, crowd_file, width, height):
    page = open_room(crowd_file.as_uri() + "?present")
    page.set_viewport_size({"width": width, "height": height})
    until(page, "/would help/.test(document.querySelector('#reason').innerText)")
    for panel in ("#blocks canvas", "#timeline canvas", "#reason"):
        until(page, lies_within(panel, height))
        box = page.locator(panel).bounding_box()
        assert box["x"] + box["width"] <= width and box["width"] > width / 3, panel
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    covered = "([...document.querySelectorAll('aside .panel, #transport > *')].filter((panel) => {"
    covered += " const a = panel.getBoundingClientRect(), b = document.querySelector('header')"
    covered += ".getBoundingClientRect(); return a.right > b.left && a.bottom > b.top"
    covered += " && a.left < b.right && a.top < b.bottom }).map((panel) => panel.outerHTML))"
    assert page.evaluate(covered) == [], "the buttons lie over what is shown"
    used, place = page.evaluate(
        "[room.grid.rows * room.grid.cell, document.querySelector('.grid-place').clientHeight]"
    )
    assert place / 2 < used <= place, "a small pool is drawn large"
    assert small_texts(page, 18) == []
    assert page.evaluate("room.timeline.sizes.font") >= 18
    assert page.locator("#pipeline").is_hidden()
    before = page.evaluate("room.record.position")
    page.keyboard.press("PageDown")  # a remote's key
    assert page.evaluate("room.record.position") > before
    page.keyboard.press("f")
    assert page.locator("#pipeline").is_visible() is (width > 1080)


def test_the_timeline_has_time(open_room, crowd_file):
    """Widths are times, the first token is where its step ends, and a row keeps its label."""
    page = opened(open_room, crowd_file)
    page.keyboard.press("t")
    until(page, "room.timeline.scale.constructor.name === 'TimeScale'")
    steps = page.evaluate(
        "room.timeline.scale.places.map(({ step, begin, end }) => [step, end - begin])"
    )
    per_ms = page.evaluate("room.timeline.perMs")
    took = {
        event["step"]: event["total_us"] / 1e3
        for event in map(json.loads, (RECORDS / "crowd.jsonl").read_text().splitlines())
        if event["kind"] == "step.finished"
    }
    assert len(steps) > 30
    for step, width in steps:
        assert width == pytest.approx(max(1, took[step] * per_ms), rel=1e-3), step
    life = "room.ledger.life('chatcmpl-crowd-0')"
    first, end = page.evaluate(f"[{life}.first.step, room.timeline.scale.end({life}.first.step)]")
    assert first == 1 and end <= page.evaluate("room.timeline.scale.begin(2)") < end + 2
    page.evaluate("room.select({ request: 'chatcmpl-crowd-0' })")
    until(
        page, "/gaps between tokens: median/.test(document.querySelector('#selection').innerText)"
    )
    queued = page.evaluate(f"({life}.first.ns - {life}.queued.ts_ns) / 1e6")
    assert f"{queued:.1f} ms after it was queued" in page.inner_text("#selection")
    assert page.evaluate("room.timeline.rowHeight >= room.timeline.sizes.font")
