"""docs/LOG_GUIDE.md says what events.py and the records say, completely and as they are now."""

from __future__ import annotations

import pytest

from docs.scripts import log_guide
from docs.scripts.declarations import common_fields, declarations
from docs.scripts.questions import QUESTIONS
from docs.scripts.reader import Record
from engine.trace import events as ev


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    return log_guide.read_records()


@pytest.fixture(scope="module")
def page() -> str:
    return log_guide.TARGET.read_text(encoding="utf-8")


def test_the_page_is_what_its_script_writes(page, records):
    written = log_guide.guide(records)
    if page != written:
        pairs = zip(page.splitlines(), written.splitlines(), strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), ("…", "…"))
        pytest.fail(
            f"run `python -m docs.scripts.log_guide`; first difference:\n{first[0]}\n{first[1]}"
        )


@pytest.mark.parametrize("declaration", declarations(), ids=lambda d: d.kind)
def test_every_kind_has_its_section_with_every_field(page, declaration):
    _before, heading, behind = page.partition(f"### `{declaration.kind}`\n")
    assert heading, f"{declaration.kind} is missing"
    section = behind.partition("\n### ")[0]
    event_class = next(e for e in ev.ALL_EVENTS if ev.kind(e) == declaration.kind)
    own = set(event_class.__struct_fields__) - set(ev.Event.__struct_fields__)
    for field in own:
        row = next((line for line in section.splitlines() if line.startswith(f"| `{field}` |")), "")
        assert row, f"{declaration.kind} lacks {field}"
        assert not row.endswith("|  |"), f"{declaration.kind}.{field} has no meaning or unit"
    for path in declaration.emitters:
        assert path in section
    assert declaration.kind in log_guide.READING


def test_every_kind_that_the_engine_emits_has_an_example(page):
    for declaration in declarations():
        section = page.partition(f"### `{declaration.kind}`\n")[2].partition("\n### ")[0]
        has_example = "```json" in section
        assert has_example != (declaration.kind in log_guide.NO_EXAMPLE), declaration.kind


def test_common_fields_have_meanings():
    assert {field.name for field in common_fields()} == set(ev.Event.__struct_fields__)
    assert all(field.meaning for field in common_fields())


def test_every_question_has_an_excerpt_from_a_record(records):
    for question in QUESTIONS:
        text, excerpts = question.answer(records)
        assert text and excerpts, question.title
        assert all(excerpt.strip() for _caption, excerpt in excerpts), question.title
        for _caption, excerpt in excerpts:
            assert max(map(len, excerpt.splitlines())) <= 100, question.title


def test_a_record_that_can_not_answer_says_so(records):
    emptied = dict(records, crowd=records["tour"])
    with pytest.raises(LookupError, match="record it again"):
        QUESTIONS[0].answer(emptied)


def test_the_records_replay_without_a_contradiction(records):
    for record in records.values():
        record.replay.seek(len(record.events))
        record.replay.check()
        assert not record.replay.state.running and not record.replay.state.lost
