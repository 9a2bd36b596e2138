"""The glossary is what its script writes; its terms, papers and lessons fit."""

from __future__ import annotations

import re

from docs.scripts import glossary
from docs.scripts.glossary_terms import PAPERS, TERMS
from engine.server import guide
from engine.server.lessons import read_lessons


def test_it_is_what_the_script_writes():
    assert glossary.PAGE.read_text(encoding="utf-8") == glossary.page()
    for path, svg in glossary.drawings().items():
        assert path.read_text(encoding="utf-8") == svg, path.name


def test_it_has_sixty_terms_of_the_field_each_once():
    names = [term.name for term in TERMS]
    assert len(names) == len(set(names)) >= 60
    assert {term.paper for term in TERMS if term.paper} == set(PAPERS)
    assert {term.drawing for term in TERMS if term.drawing} == set(glossary.DRAWINGS)


def test_an_arxiv_number_has_its_year():
    for key, paper in PAPERS.items():
        if number := re.search(r"arxiv\.org/abs/(\d\d)\d\d\.\d{4,5}$", paper.where):
            assert 0 <= paper.year - 2000 - int(number[1]) <= 1, key


def test_every_word_of_a_lesson_is_in_it():
    page = guide.page("GLOSSARY.md")
    for lesson in read_lessons():
        for term in lesson.terms:
            assert f'id="{term}"' in page, (lesson.title, term)
