"""The corpus and its generators: enough questions, no doubles, always the same."""

import json
import random
import re
from collections import Counter
from itertools import islice

import pytest

from pocket.agents import FAILED, draw_call, draw_tools, written
from pocket.corpus import read_corpus, read_topic
from pocket.documents import Mixture
from pocket.phrasings import Phrasings, held_out_wording, normal, worn
from pocket.stories import StoryTeller
from pocket.unknowns import HONEST_ANSWERS, Unknowns, is_honest

ENTRIES = read_corpus()


def test_there_are_hundreds_of_distinct_questions_and_answers():
    assert len(ENTRIES) >= 400
    assert len({entry.answer for entry in ENTRIES}) == len(ENTRIES)


def test_no_question_is_asked_twice():
    counts = Counter(normal(question) for entry in ENTRIES for question in entry.questions)
    assert [question for question, count in counts.items() if count > 1] == []


def test_answers_are_short_and_end_like_sentences():
    for entry in ENTRIES:
        assert 8 <= len(entry.answer.split()) <= 70, entry.question
        assert entry.answer.endswith((".", "!", "?")), entry.question


def test_no_wording_leads_to_two_answers():
    owners: dict[str, set[str]] = {}
    for entry, wordings in Phrasings(ENTRIES).by_entry.items():
        for wording in wordings:
            owners.setdefault(normal(wording), set()).add(entry.answer)
    assert [wording for wording, answers in owners.items() if len(answers) > 1] == []


def test_held_out_wordings_are_never_drawn_in_training():
    phrasings = Phrasings(ENTRIES)
    trained = {normal(w) for wordings in phrasings.by_entry.values() for w in wordings}
    held_out = {normal(text) for e in ENTRIES if (text := held_out_wording(e.question))}
    assert len(held_out) > 200
    assert not trained & held_out


def test_a_topic_file_with_a_stray_line_is_refused(tmp_path):
    page = tmp_path / "broken.md"
    page.write_text("# Broken\n\nQ: What?\nno answer\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.md:4"):
        read_topic(page)


def test_a_question_without_an_answer_is_refused(tmp_path):
    page = tmp_path / "broken.md"
    page.write_text("Q: What?\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no answer"):
        read_topic(page)


def test_the_same_seed_gives_the_same_documents():
    first, second, other = (Mixture(ENTRIES, seed) for seed in (7, 7, 8))
    drawn = [[mixture.short() for _ in range(200)] for mixture in (first, second, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert first.conversation(12) == second.conversation(12)


def test_every_entry_is_drawn_before_any_is_drawn_again():
    mixture = Mixture(ENTRIES, 3)
    drawn = [mixture.next_entry() for _ in ENTRIES]
    assert set(drawn) == set(ENTRIES)


def test_a_story_keeps_its_hero_and_fills_every_slot():
    teller, rng = StoryTeller(), random.Random(5)
    for hero in islice(teller.heroes, 40):
        story = teller.story(rng, hero)
        assert hero in story
        assert "{" not in story
        assert 40 <= len(story.split()) <= 160
    assert len({teller.story(rng) for _ in range(200)}) == 200


def test_unknown_questions_are_varied_and_their_answers_honest():
    unknowns, rng = Unknowns(), random.Random(1)
    drawn = {unknowns.question(rng) for _ in range(2000)}
    assert len(drawn) > 1500
    assert not any("{" in question for question in drawn)
    assert all(is_honest(answer) for answer in HONEST_ANSWERS)


def test_unknown_questions_are_not_taught_ones():
    taught = {normal(question) for entry in ENTRIES for question in entry.questions}
    unknowns, rng = Unknowns(), random.Random(2)
    asked = [unknowns.question(rng) for _ in range(3000)] + unknowns.held_out_questions()
    assert [question for question in asked if normal(question) in taught] == []


def test_sums_are_right_and_calls_fit_their_definitions():
    rng = random.Random(8)
    seen = Counter()
    for _ in range(500):
        tools = draw_tools(rng)
        call = draw_call(tools, rng)
        (schema,) = [
            tool["function"]["parameters"]
            for tool in tools.definitions
            if tool["function"]["name"] == call.name
        ]
        assert set(call.arguments) == set(schema["properties"])
        seen[call.name == tools.clock] += 1
        told = call.response
        if told.startswith("{"):
            (told,) = json.loads(told).values()
        assert told in call.answer or call.answer == FAILED
        for expression in call.arguments.values():
            assert set(expression) <= set("0123456789+-*/() ")
            right = eval(expression)  # digits and signs, as the line above says
            assert told == written(right) or call.answer == FAILED
    assert min(seen.values()) > 100


def test_a_question_for_a_tool_that_lacks_is_answered_honestly():
    mixture = Mixture(ENTRIES, 9)
    for _ in range(200):
        text = "".join(part for part, _ in mixture.agent())
        names = set(re.findall(r'^\{"name": "(\w+)", "description"', text, re.MULTILINE))
        called = set(re.findall(r'^\{"name": "(\w+)", "arguments"', text, re.MULTILINE))
        assert called <= names


def test_a_worn_question_stays_recognisable():
    rng = random.Random(0)
    for _ in range(200):
        text = worn("What is continuous batching?", rng)
        assert abs(len(text) - len("What is continuous batching?")) <= 2
