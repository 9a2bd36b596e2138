from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from engine.text.detokenizer import (
    REPLACEMENT,
    ByteDetokenizer,
    WindowDetokenizer,
    detokenizer_for,
)
from engine.text.pieces import token_bytes_of
from tests.text.tiny_tokenizers import CORPUS, byte_fallback_hf, byte_level_hf

FAMILIES = ["byte_level", "metaspace", "byte_fallback", "word_piece", "slow"]
TEXTS = [*dict.fromkeys(CORPUS), "x" * 50, "  two  spaces ", "🇩🇪👩‍👩‍👧‍👦", "añb\n\nc"]


def pieces_of(tokenizer, prompt, output, skip=True):
    detokenizer = detokenizer_for(tokenizer, prompt, skip)
    pieces = [detokenizer.feed(token) for token in output]
    return [*pieces, detokenizer.flush()]


def test_families_take_the_way_meant_for_them(request):
    kinds = {
        name: type(detokenizer_for(request.getfixturevalue(name), [5], True)) for name in FAMILIES
    }
    assert kinds == {
        "byte_level": ByteDetokenizer,
        "metaspace": ByteDetokenizer,
        "byte_fallback": ByteDetokenizer,
        "word_piece": WindowDetokenizer,
        "slow": WindowDetokenizer,
    }


@pytest.mark.parametrize(
    ("family", "way"),
    [(family, None) for family in FAMILIES]
    + [("byte_level", WindowDetokenizer), ("metaspace", WindowDetokenizer)],
)
def test_real_text_streams_exactly(family, way, request):
    """Every text, cut anywhere into prompt and output, comes out as the tokenizer decodes it."""
    tokenizer = request.getfixturevalue(family)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        for cut in range(1, len(ids), max(1, len(ids) // 6)):
            prompt, output = ids[:cut], ids[cut:]
            head = tokenizer.decode(prompt)
            if head.endswith(REPLACEMENT) and family == "byte_fallback":
                continue  # the library has spoilt the complete characters before it, too
            head = head.rstrip(REPLACEMENT)  # the output completes the character
            detokenizer = (
                way(tokenizer, prompt[-6:], tokenizer.special_ids)
                if way
                else detokenizer_for(tokenizer, prompt)
            )
            pieces = [*map(detokenizer.feed, output), detokenizer.flush()]
            assert head + "".join(pieces) == tokenizer.decode(ids)
            assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("family", ["byte_level", "metaspace", "word_piece"])
@pytest.mark.parametrize("skip", [True, False])
def test_random_tokens_stream_exactly(family, skip, request):
    """Property: prompt text + deltas = decode of everything, for any token ids at all."""
    tokenizer = request.getfixturevalue(family)
    anchor = tokenizer.encode("hello", add_special_tokens=False)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    def check(output):
        expected = tokenizer.decode(anchor + output, skip)
        assert (
            tokenizer.decode(anchor) + "".join(pieces_of(tokenizer, anchor, output, skip))
            == expected
        )

    check()


def test_random_tokens_with_byte_fallback(byte_fallback):
    """Runs of bytes that are no character differ on purpose: the tokenizers library turns all of
    such a run into U+FFFD, even characters that were complete and had gone out already. Our text is
    that of the bytes, and equal to the library's wherever the bytes are characters."""
    rng = random.Random(7)
    tokenizer = byte_fallback
    anchor = tokenizer.encode("hello", add_special_tokens=False)
    table = tokenizer.token_bytes
    num_equal = 0
    for _ in range(400):
        output = [rng.randrange(3, tokenizer.vocab_size) for _ in range(rng.randrange(1, 12))]
        ours = "".join(pieces_of(tokenizer, anchor, output))
        data = b"".join(map(table.bytes_of, output))
        assert ours == data.decode(errors="replace")
        if REPLACEMENT not in ours:
            assert tokenizer.decode(anchor) + ours == tokenizer.decode(anchor + output)
            num_equal += 1
    assert num_equal > 10


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "slow"])
def test_a_character_is_never_split(family, request):
    """Nothing goes out before all bytes of a character are there, and then all of it at once."""
    tokenizer = request.getfixturevalue(family)
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    byte_ids = {}
    for token_id in range(tokenizer.vocab_size):
        if family == "slow":
            byte_ids[token_id - 3] = token_id
        elif len(data := tokenizer.token_bytes.bytes_of(token_id)) == 1:
            byte_ids.setdefault(data[0], token_id)
    text = "é你😀a"
    output = [byte_ids[byte] for byte in text.encode()]
    detokenizer = detokenizer_for(tokenizer, prompt)
    pieces, holds = [], []
    for token in output:
        pieces.append(detokenizer.feed(token))
        holds.append(detokenizer.holds_back)
    assert pieces == ["", "é", "", "", "你", "", "", "", "😀", "a"]
    assert holds == [piece == "" for piece in pieces]
    assert detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_shown_as_such(byte_level):
    ids = byte_level.encode("ab😀", add_special_tokens=False)
    data = [byte_level.token_bytes.bytes_of(i) for i in ids]
    single = [next(i for i in range(256 + 3) if byte_level.token_bytes.bytes_of(i) == bytes([b]))
              for b in "ab😀".encode()]  # fmt: skip
    assert b"".join(data) == "ab😀".encode()
    assert "".join(pieces_of(byte_level, single[:1], single[1:4])) == "b" + REPLACEMENT


def test_the_prompts_half_character_is_completed_or_left_alone(byte_level):
    table = byte_level.token_bytes
    of_byte = {table.bytes_of(i): i for i in range(3, 259)}
    prompt = [of_byte[b"a"], of_byte[b"\xc3"]]
    assert "".join(pieces_of(byte_level, prompt, [of_byte[b"\xa9"], of_byte[b"x"]])) == "éx"
    assert "".join(pieces_of(byte_level, prompt, [of_byte[b"y"], of_byte[b"x"]])) == "yx"
    assert "".join(pieces_of(byte_level, prompt, [])) == ""


def test_the_space_before_a_first_word(byte_fallback):
    """Behind a prompt a word keeps its space; behind nothing visible it doesn't."""
    hello = byte_fallback.encode("hello", add_special_tokens=False)
    assert "".join(pieces_of(byte_fallback, hello, hello)) == " hello"
    assert "".join(pieces_of(byte_fallback, [1], hello)) == "hello"
    assert "".join(pieces_of(byte_fallback, [1], hello, skip=False)) == " hello"


def test_special_tokens_are_skipped_or_shown(byte_level):
    ids = byte_level.encode("hello", add_special_tokens=False)
    assert "".join(pieces_of(byte_level, ids, [*ids, 2])) == "hello"
    assert "".join(pieces_of(byte_level, ids, [*ids, 2], skip=False)) == "hello</s>"


def test_window_stays_small_on_endless_garbage(byte_level):
    """Bytes that never become a character must not pile up."""
    table = byte_level.token_bytes
    garbage = next(i for i in range(3, 259) if table.bytes_of(i) == b"\x80")
    window = WindowDetokenizer(byte_level, [5], frozenset())
    for _ in range(500):
        window.feed(garbage)
        assert len(window._window) < 25


def test_a_decoder_that_is_not_what_it_seems_is_not_trusted():
    """The byte table is checked against the tokenizer before it is used."""
    backend = byte_level_hf().backend_tokenizer
    assert token_bytes_of(backend) is not None
    backend.decoder = decoders.Sequence([decoders.Strip("h", 1, 0), decoders.ByteLevel()])
    assert token_bytes_of(backend) is None
    backend = byte_fallback_hf().backend_tokenizer
    steps = [decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0), decoders.Fuse()]
    assert token_bytes_of(backend) is not None
    backend.decoder = decoders.Sequence(steps)  # known steps, but here every token is stripped
    assert token_bytes_of(backend) is None
