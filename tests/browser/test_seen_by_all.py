"""Everybody can use the page and the lab's report: axe-core, contrast, targets, keys, a phone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from docs.scripts.site import build as build_site
from engine.trace.__main__ import main
from lab.chapter import Chapter, Expectation, Outcome
from lab.drawings import EMPTY, Bar, Bars, Cells, Lanes, Lines, Pieces, Series
from lab.report import Section, report
from tests.browser.conftest import need
from tests.browser.room_page import ROOT, caught_up, until
from tests.browser.seen_by_all import (
    axe_source,
    low_contrast,
    overflow,
    small_targets,
    violations,
)
from tests.support.cases import pairs

RECORD = ROOT / "docs" / "records" / "tour.jsonl"
PHONE = {"width": 390, "height": 844}
THEMES = ["light", "dark"]


@pytest.fixture(scope="module")
def axe() -> str:
    script = axe_source()
    need(script, "axe-core: pip install axe-playwright-python")
    assert script is not None
    return script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def room_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("seen") / "room.html"
    assert main(["page", str(RECORD), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def lab_file(tmp_path_factory):
    """A report with every kind of drawing, long words, and a chapter that couldn't be shown."""
    drawings = [
        Bars("Bars", "s", [Bar("a", [(1.0, 0), (2.0, 1)]), Bar("b", [(0.5, 2)])], [("x", 0)]),
        Lines("Lines", "x", "y", [Series(f"series {i}", [(1, i), (9, 3)]) for i in range(1, 4)]),
        Cells("Cells", [(f"row {i}", [0, 1, 2, EMPTY] * 20) for i in range(4)], [("free", EMPTY)]),
        Lanes("Lanes", "step", [("seat", [(i, i + 1, i) for i in range(8)])], [("waits", EMPTY)]),
        Pieces("Pieces", [("text", ["a", " long" * 9, "\\n", "word" * 30] * 6)]),
    ]
    chapter = Chapter(
        name="all",
        title="Everything that a chapter can show",
        idea="An idea. " * 30,
        predict=lambda _: [],
        run=lambda _: Outcome(),
        read_next="engine/kernels/triton/paged_attention_of_a_long_name.py",
        read_for="details",
    )
    what = "the time of a long step with many tokens"
    expected = [Expectation("time", what, 12.5, "ms", "because " * 20)]
    outcome = Outcome(
        measured={"time": 11.0},
        findings=["See `a_very_long_identifier_that_does_not_break_by_itself_anywhere_at_all`."],
        not_shown=["something else"],
        drawings=drawings,
    )
    missing = Section(replace(chapter, name="none"), [], Outcome(), 0.1, "it can't be shown")
    sections = [Section(chapter, expected, outcome, 1.5), missing]
    path = tmp_path_factory.mktemp("lab") / "lab.html"
    path.write_text(report(["pocket: 5 M parameters", "a machine " * 20], sections), "utf-8")
    return path


@pytest.fixture(scope="module")
def site_file(tmp_path_factory):
    return build_site(tmp_path_factory.mktemp("site"))[0]


def test_a_room_of_the_site_opens_at_its_moment(open_room, site_file):
    page = open_room(site_file.as_uri())
    page.click("article a >> nth=0")
    page.wait_for_selector("#status[data-state=file]")
    until(page, "room.record.lines.length > 0 && room.selection.request !== null")
    wanted = page.url.partition("step=")[2].partition("&")[0]
    assert page.evaluate("room.record.state.step") == int(wanted)
    until(page, "/preempted/.test(document.querySelector('#selection').innerText)")
    assert "a larger pool (--num-gpu-blocks-override)" in page.inner_text("#selection")


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_is_for_everybody(open_room, live, axe, theme):
    """While something is selected, all panels are full, and a dialog was opened."""
    # hot, so that tokens are unexpected: the stronger their tint, the less the contrast
    hot = {"temperature": 2.0, "seed": 3, "ignore_eos": True, "trace": "full"}
    answer = live.complete("What is a block table?", max_tokens=40, **hot)
    live.wait_until_idle()
    page = open_room(f"?theme={theme}")
    caught_up(page, live)
    page.evaluate(f"room.select({{ request: {answer['id']!r}, block: 3 }})")
    page.evaluate("room.goTo(room.record.length - 5); room.notice('Something to say.')")
    page.wait_for_selector("#lens .token")
    page.wait_for_selector("#log li")
    assert violations(page, axe) == []
    assert small_targets(page) == []
    assert low_contrast(page) == []
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    assert violations(page, axe) == []


@pytest.mark.parametrize(("name", "theme"), pairs(["lab", "site"], THEMES, every=2))
def test_the_lab_report_and_the_site_are_for_everybody(request, browser, axe, theme, name):
    context = browser.new_context(color_scheme=theme)
    page = context.new_page()
    page.goto(request.getfixturevalue(f"{name}_file").as_uri())
    assert violations(page, axe) == []
    assert low_contrast(page) == []
    assert small_targets(page) == []
    context.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, room_file, lab_file, site_file):
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    for file in (room_file, lab_file, site_file):
        page.goto(file.as_uri())
        page.wait_for_timeout(500)
        assert overflow(page) <= 0, file.name
    context.close()


def test_every_control_is_reached_by_the_tab_key(open_room, room_file):
    page = open_room(room_file.as_uri())
    until(page, "room.record.lines.length > 0")
    page.evaluate("room.goToStep(room.record.steps[40])")
    page.wait_for_selector("#log li button")
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        name = page.evaluate(
            "() => { const at = document.activeElement, panel = at.closest('section, header');"
            " return `${panel?.id || panel?.tagName} ${at.tagName}`; }"
        )
        reached.add(name)
    assert {"blocks CANVAS", "timeline CANVAS", "log INPUT", "transport SELECT"} <= reached
    assert {"log OL", "queues BUTTON"} <= reached


def test_sequences_and_lines_are_chosen_by_the_arrows(open_room, room_file):
    page = open_room(room_file.as_uri())
    until(page, "room.record.lines.length > 0")
    page.evaluate("room.goToStep(room.record.steps[40])")
    page.wait_for_selector("#log li button")
    page.focus("#timeline canvas")
    page.keyboard.press("ArrowDown")
    first = page.evaluate("room.selection.request")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("room.selection.request")
    assert first and second and first != second
    page.keyboard.press("ArrowUp")
    assert page.evaluate("room.selection.request") == first
    before = page.evaluate("room.record.state.step")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("room.record.state.step") == before + 1
    page.evaluate("room.select({ request: null })")
    page.wait_for_timeout(300)
    page.focus("#log ol")
    page.keyboard.press("ArrowUp")
    latest = page.evaluate("document.activeElement.innerText")
    page.keyboard.press("ArrowUp")
    earlier = page.evaluate("document.activeElement.innerText")
    assert page.evaluate("document.activeElement.matches('#log button')")
    page.keyboard.press("Enter")
    target = int(earlier.split("–")[0].replace(",", ""))
    assert page.evaluate("room.record.state.step") == target, (latest, earlier)
