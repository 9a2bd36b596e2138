"""A phone of a class, the guide inside the page, and axe-core on both and on the presentation."""

from __future__ import annotations

import pytest

from glasshouse.command import CLASS_FLAGS
from tests.browser.conftest import need
from tests.browser.room_page import lies_within, until
from tests.browser.seen_by_all import (
    axe_source,
    low_contrast,
    overflow,
    small_targets,
    small_texts,
    violations,
)

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def classroom(start_server):
    with start_server(*CLASS_FLAGS) as server:
        yield server


@pytest.fixture(scope="module")
def axe() -> str:
    script = axe_source()
    need(script, "axe-core: pip install axe-playwright-python")
    assert script is not None
    return script.read_text(encoding="utf-8")


def for_everybody(page, axe) -> None:
    assert violations(page, axe) == []
    assert small_targets(page) == []
    assert low_contrast(page) == []


def test_a_phone_asks_and_its_name_is_on_the_teachers_page(open_room, classroom, axe):
    teacher = open_room(server=classroom)
    teacher.wait_for_selector("#class .code")
    code = teacher.inner_text("#class .code")
    assert teacher.get_attribute("#class img", "src").startswith("data:image/svg+xml")
    phone = open_room(f"class#{code}", server=classroom)
    phone.set_viewport_size(PHONE)
    assert phone.input_value("[name=code]") == code
    phone.fill("[name=name]", "Ada")
    phone.click("button")
    until(phone, "/finished/.test(document.querySelector('#life').innerText)")
    assert phone.inner_text("#answer")
    assert overflow(phone) <= 0
    for_everybody(phone, axe)
    until(teacher, "[...room.ledger.sequences.values()].some(({ label }) => label === 'Ada')")
    phone.fill("[name=code]", "WRONG")
    phone.click("button")
    until(phone, "/not the code/.test(document.querySelector('#said').innerText)")
    phone.errors[:] = [said for said in phone.errors if "403" not in said]


def test_a_guide_opens_inside_the_page(open_room, classroom, axe):
    page = open_room(server=classroom)
    page.wait_for_selector("#status[data-state=live]")
    page.click("nav a.guide")
    frame = page.frame_locator("#guide iframe")
    assert frame.locator("h1").inner_text() == "Glossary"
    frame.locator("a[href='#preemption']").first.click()
    frame.locator("#preemption ~ p a[href^='source/engine/core/scheduler.py']").first.click()
    frame.locator("ol.source").wait_for()
    assert "def schedule" in frame.locator("ol.source").inner_text()
    page.keyboard.press("Escape")
    page.goto(f"{classroom.url}/guide/GLOSSARY.md")
    for_everybody(page, axe)


def test_a_lesson_in_the_presentation_is_for_everybody(open_room, classroom, axe):
    page = open_room("?present", server=classroom)
    page.set_viewport_size({"width": 1280, "height": 720})
    page.wait_for_selector(".lesson-list li")
    page.evaluate("room.lessons.open(1)")
    page.wait_for_selector(".choice")
    page.keyboard.press("2")
    page.keyboard.press("PageDown")  # a remote sends it, and goes on to the next one
    page.wait_for_selector(".verdict", timeout=90_000)
    assert small_texts(page, 18) == []
    for height in (720, 480):
        page.set_viewport_size({"width": 1280 * height // 720, "height": height})
        until(page, lies_within(".figures", height))
    for_everybody(page, axe)
    page.keyboard.press("PageDown")
    until(page, "document.querySelector('#lessons .caption').innerText.startsWith('3 of')")
