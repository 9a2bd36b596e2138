"""Every lesson, done in a browser: it pauses at its moment, with its two numbers."""

from __future__ import annotations

import re
from typing import get_args

import pytest

from engine.server.lessons import FOLDER, Moment, read_lessons
from glasshouse.command import CLASS_FLAGS
from tests.browser.room_page import until

LESSONS = read_lessons()
FILES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(scope="module")
def page(browser, start_server):
    with start_server(*CLASS_FLAGS) as server:
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector(".lesson-list li")
        yield page
        assert errors == []
        context.close()


# Each takes seconds, so every fifth one stands for all; CI does all of them.
CASES = [
    pytest.param(number, id=name, marks=[pytest.mark.full] if number % 5 else [])
    for number, name in enumerate(FILES)
]


@pytest.mark.parametrize("number", CASES)
def test_a_lesson_pauses_at_its_moment(page, number):
    lesson = LESSONS[number]
    page.evaluate("room.lessons.open(-1)")
    page.click(f".lesson-list li:nth-child({number + 1}) button")
    assert page.locator(".lesson-go").is_disabled()  # nothing is shown before a prediction
    page.locator(".choice").nth(lesson.prediction.answer - 1).click()
    page.click(".lesson-go")
    page.wait_for_selector(".verdict", timeout=90_000)
    assert "As you predicted" in page.inner_text(".verdict")
    assert not page.evaluate("room.following")
    event = page.evaluate("room.lessons.moment.event")
    names = page.evaluate("import('/room/moments.js').then((m) => m.MOMENTS)")
    assert event["kind"] in names[lesson.pause.at]["kinds"]
    assert lesson.pause.where.items() <= event.items()
    shown = page.evaluate("[room.record.position, room.lessons.moment.position]")
    assert shown[0] == shown[1]
    until(page, "!document.querySelector('.figures').innerText.includes('…')")
    figures = page.locator(".figures dd").all_inner_texts()
    assert len(figures) == 2 and all(re.match(r"[\d,.]+( [µm]?s)?$", text) for text in figures)
    if event.get("request_id"):
        assert page.evaluate("room.selection.request") == event["request_id"]


def test_a_list_that_is_shown_is_not_drawn_anew(page):
    """A click that began on the old list was lost, and no lesson opened."""
    page.evaluate("room.lessons.open(-1)")
    page.wait_for_selector(".lesson-list li")
    page.evaluate("window.first = document.querySelector('.lesson-list li')")
    page.evaluate("room.lessons.open(-1)")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    assert page.evaluate("window.first.isConnected")


def test_the_moments_are_those_of_the_page(page):
    there = page.evaluate("import('/room/moments.js').then((m) => Object.keys(m.MOMENTS))")
    assert sorted(there) == sorted(get_args(Moment))


def test_a_lesson_says_what_server_it_needs(page):
    page.evaluate("room.ledger.facts['engine.kv_sized'].num_blocks = 32768")
    at = next(i for i, lesson in enumerate(LESSONS) if lesson.fits.blocks)
    page.evaluate(f"room.lessons.open({at})")
    until(page, "document.querySelector('#lessons .told') !== null")
    told = page.inner_text("#lessons .told")
    assert "32,768 blocks" in told and "glasshouse class" in told
    assert page.locator(".lesson-go").count() == 0


def test_a_lesson_that_is_wrong_names_its_file(tmp_path):
    good = (FOLDER / f"{FILES[0]}.toml").read_text()
    for old, new, said in (
        ('at = "step"', 'at = "lunch"', "lunch"),
        ("answer = 1", "answer = 9", "answer 9 is none of 3"),
        ('title = "', 'titel = "', "titel"),
        ('of = "time.num_tokens"', 'of = "os.system"', "of"),
    ):
        (tmp_path / "wrong.toml").write_text(good.replace(old, new))
        with pytest.raises(ValueError, match=r"wrong\.toml") as error:
            read_lessons(tmp_path)
        assert said in str(error.value)
