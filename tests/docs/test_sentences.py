"""The log's lines about the records in docs/: singular for one, no time of "0", no long ids."""

from __future__ import annotations

import re

import pytest

from docs.scripts.reader import RECORDS, Record

NAMES = sorted(path.stem for path in RECORDS.glob("*.jsonl"))
MANY = re.compile(r"(?<![\d.,–-])\b1 (are|were|tokens|blocks|steps|seats|requests|events)\b")
LISTED = re.compile(r"blocks? \d[\d, –]*")  # numbers of blocks: none of them is a count
NO_TIME = re.compile(r"\b(swap|copying|computing|takes|recompute)\D{0,12} 0(\.0+)? ms")


@pytest.mark.parametrize("name", NAMES)
def test_sentences_read_as_a_person_would_say_them(name):
    record = Record(name)
    told = [line.text for line in [*record.story, *record.single]]
    lines = [LISTED.sub("", text) for text in told]
    assert not [text for text in lines if MANY.search(text)]
    assert not [text for text in lines if NO_TIME.search(text)]
    long = [request for request in {line.request_id for line in record.story} if len(request) > 10]
    assert long or name == "none"
    assert not [text for text in lines for request in long if request in text]


def test_the_crowd_says_why_it_preempted():
    for name in ("crowd", "crowd-recompute"):
        told = [line.text for line in Record(name).single if line.kind == "request.preempted"]
        assert told
        for text in told:
            assert re.search(r"needs 1 block for token \d+, no block is free; .* is the last", text)
            assert re.search(r"a larger pool .* or fewer seats \(--max-num-seqs \d\) would", text)
            assert "…" not in text
