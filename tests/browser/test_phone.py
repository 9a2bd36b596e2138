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


def test_the_class_votes_on_a_lesson_and_sees_it_at_the_reveal(open_room, classroom, axe):
    """Bars on the teacher's screen as votes come; a phone votes once, and not after the end."""
    teacher = open_room("?present", server=classroom)
    teacher.set_viewport_size({"width": 1280, "height": 720})
    teacher.wait_for_selector("#class .code")
    phones = [
        open_room(f"class#{teacher.inner_text('#class .code')}", server=classroom) for _ in range(3)
    ]
    teacher.evaluate("room.lessons.open(0)")
    teacher.wait_for_selector(".class-vote")
    assert teacher.locator(".lesson-go").is_disabled()
    assert phones[0].locator("#vote").is_hidden()
    teacher.keyboard.press("PageDown")  # a remote's key opens the vote
    for phone, choice in zip(phones, (0, 0, 1), strict=True):
        phone.set_viewport_size(PHONE)
        phone.wait_for_selector("#vote .choice")
        if choice:  # one votes later, so that bars are seen to move
            bars = "[...document.querySelectorAll('.votes')].map((vote) => vote.innerText).join()"
            until(teacher, f"{bars} === '2 votes,0 votes,0 votes'")
        phone.locator("#vote .choice").nth(choice).click()
        until(phone, "/counts/.test(document.querySelector('#vote .told').innerText)")
        assert phone.locator("#vote .choice:enabled").count() == 0
        assert phone.locator("#vote .votes").count() == 0  # nobody sees the others' before the end
    phones[0].reload()  # and is the same phone still
    phones[0].wait_for_selector("#vote .choice[aria-pressed=true]:disabled")
    until(teacher, "document.querySelectorAll('.votes')[1]?.innerText === '1 vote'")
    shares = (
        "[...document.querySelectorAll('.choice')].map((c) => parseInt(c.style.cssText.slice(8)))"
    )
    assert teacher.evaluate(shares) == [66, 33, 0]
    until(teacher, "/votes: 3 of [3-9] phones/.test(document.querySelector('.voting').innerText)")
    assert small_texts(teacher, 18) == []
    for_everybody(teacher, axe)
    for_everybody(phones[2], axe)
    teacher.keyboard.press("PageDown")  # the votes are the prediction
    teacher.wait_for_selector(".verdict", timeout=90_000)
    assert "So said 2 of 3 votes" in teacher.inner_text(".verdict")
    until(teacher, lies_within(".figures", 720))
    for phone, said in zip(phones, ("As you", "As you", "Not as you"), strict=True):
        until(phone, f"document.querySelector('#vote .told').innerText.startsWith({said!r})")
        assert phone.locator("#vote .votes").all_inner_texts() == ["2", "1", "0"]
        assert overflow(phone) <= 0
    for_everybody(phones[0], axe)
    teacher.keyboard.press("PageDown")  # the next lesson has no votes
    teacher.wait_for_selector(".class-vote")
    assert teacher.locator(".votes").count() == 0
