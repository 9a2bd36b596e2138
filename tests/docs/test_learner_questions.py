"""Twenty questions of a learner: each is answered where the table says, two clicks away at most."""

from __future__ import annotations

import re

import pytest

from docs.scripts.learner_questions import PAGE, QUESTIONS, README, clicks
from docs.scripts.log_guide import anchor


def answer(section: str) -> str:
    """The text of a section, up to the next heading of its level."""
    name, _, heading = section.partition("#")
    text = (PAGE.parent / name).read_text(encoding="utf-8")
    parts = re.split(r"^(#+) (.*)$", text, flags=re.MULTILINE)
    found, depth = "", 0
    for level, title, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if found and len(level) <= depth:
            break
        if anchor(title.replace("`", "")) == heading:
            found, depth = " ", len(level)
        if found:
            found += body
    return " ".join(found.split())


def test_there_are_twenty_different_ones():
    assert len({question.asked for question in QUESTIONS}) == 20


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.asked[:40])
def test_a_question_is_answered_within_two_clicks(question):
    text = answer(question.section)
    assert len(text) > 200, f"{question.section} says nothing"
    assert not [words for words in question.words if words not in text], question.section
    number = clicks(question.section)
    assert number is not None and number <= 2


def test_clicks_are_counted():
    assert clicks("QUESTIONS.md#no-such-heading") is None
    assert clicks("ARCHITECTURE_OVERVIEW.md", README) == 1
    assert clicks("ARCHITECTURE_OVERVIEW.md#the-rules", PAGE) == 1
