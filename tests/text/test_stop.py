from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling_params import MAX_STOP_STRINGS, SamplingParams
from engine.text.stop import StopMatcher

ALPHABET = "aab⊕"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stops: list[str], first_end: int = 0) -> tuple[str | None, int]:
    """(stop, where it starts): the first to complete, ties by list order, by trying every end."""
    for end in range(first_end + 1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return stop, end - len(stop)
    return None, len(text)


def run(pieces, stops, include=False, armed_from=0):
    """Feed pieces; returns what went out, piece by piece, and the stop."""
    matcher = StopMatcher(stops, include)
    out = []
    for place, piece in enumerate(pieces):
        out.append(matcher.feed(piece, armed=place >= armed_from))
        assert matcher.num_held <= max(map(len, stops)) - 1
        if matcher.matched is not None:
            return out, matcher.matched
    return [*out, matcher.flush()], None


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=4), max_size=20), STOPS, st.booleans())
def test_any_pieces_end_where_the_whole_text_would(pieces, stops, include):
    text = "".join(pieces)
    expected, start = reference(text, stops)
    out, matched = run(pieces, stops, include)
    assert matched == expected
    shown = text[: start + len(expected)] if include and expected else text[:start]
    assert "".join(out) == shown


def test_as_many_stops_as_harnesses_for_code_send():
    """HumanEval's five, and an end of sequence, of which none has begun most of the time."""
    stops = ["\nclass", "\ndef", "\n#", "\nif", "\nprint", "<|end|>"]
    assert SamplingParams(stop=stops).stop == stops
    many = [f"{place:02}!" for place in range(MAX_STOP_STRINGS - len(stops))] + stops
    SamplingParams(stop=many)
    for stop in many:
        out, matched = run(["    return", " x", *stop, "\n"], many)
        assert ("".join(out), matched) == ("    return x", stop)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=4), max_size=20), STOPS, st.integers(0, 10))
def test_stops_that_complete_before_min_tokens_do_not_count(pieces, stops, armed_from):
    text = "".join(pieces)
    expected, start = reference(text, stops, first_end=len("".join(pieces[:armed_from])))
    out, matched = run(pieces, stops, armed_from=armed_from)
    assert (matched, "".join(out)) == (expected, text[:start])


@settings(max_examples=250, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=4), max_size=20), STOPS)
def test_nothing_waits_without_a_reason(pieces, stops):
    """What is held is the beginning of a stop string, and the longest such end of the text."""
    matcher = StopMatcher(stops)
    text = out = ""
    for piece in pieces:
        text += piece
        out += matcher.feed(piece)
        if matcher.matched is not None:
            return
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
        longest = max(len(b) for b in beginnings if text.endswith(b))
        assert matcher.num_held == longest
        assert out == text[: len(text) - longest]


@pytest.mark.parametrize(
    ("pieces", "stops", "shown", "matched"),
    [
        (["Hello wor", "ld", "!"], ["world"], ["Hello ", ""], "world"),  # across token borders
        (["a st", "art"], ["stop"], ["a ", "start", ""], None),  # no stop after all: released
        (["abcd"], ["abcd", "bc"], ["a"], "bc"),  # the first to complete wins
        (["xabc"], ["bc", "abc"], ["xa"], "bc"),  # a tie: list order
        (["xabc"], ["abc", "bc"], ["x"], "abc"),
        (["aaab"], ["aab"], ["a"], "aab"),  # the beginning overlaps itself
        (["one\n", "\ntwo"], ["\n\n"], ["one", ""], "\n\n"),
        (["text", "", "s"], ["s"], ["text", "", ""], "s"),
    ],
)
def test_examples(pieces, stops, shown, matched):
    assert run(pieces, stops) == (shown, matched)


def test_a_stop_string_that_did_not_count_may_be_the_start_of_one_that_does():
    assert run(["aa", "a"], ["aa"], armed_from=1) == (["a", ""], "aa")


def test_without_stop_strings_text_passes_through():
    matcher = StopMatcher()
    assert [matcher.feed("a"), matcher.feed("bc"), matcher.flush()] == ["a", "bc", ""]
    assert matcher.matched is None


def test_a_long_stop_string_that_nearly_matches_again_and_again():
    rng = random.Random(3)
    stop = "a" * 2000 + "b"
    text = "".join("a" * rng.randrange(1500, 2000) + "c" for _ in range(20))
    matcher = StopMatcher([stop])
    out = "".join(matcher.feed(text[i : i + 7]) for i in range(0, len(text), 7))
    assert out + matcher.flush() == text
