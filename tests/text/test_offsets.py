"""Where tokens begin in a text, against the text itself."""

from __future__ import annotations

import pytest

from engine.sampling_params import SamplingParams
from engine.text.detokenizer import answer_detokenizer, detokenizer_for
from engine.text.offsets import TextOffsets, prompt_offsets
from engine.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import word_piece_hf

TEXTS = ["hello world", "café 😀😀 ok", "👩‍👩‍👧 漢字", "a", " b  c ", "\ud7ff\ue000"]


def answer_offsets(tokenizer, ids, prompt=(), place=0):
    offsets = TextOffsets(answer_detokenizer(tokenizer, prompt, SamplingParams()), place)
    return [offsets.take(token) for token in ids], offsets.place


@pytest.mark.parametrize("text", TEXTS)
def test_a_token_begins_where_the_characters_before_it_end(byte_level, text):
    ids = byte_level.encode(text, add_special_tokens=False)
    data = [byte_level.token_bytes.bytes_of(i) for i in ids]
    whole = [len(b"".join(data[:k]).decode("utf-8", "ignore")) for k in range(len(ids))]
    assert answer_offsets(byte_level, ids, prompt=[5], place=7)[0] == [7 + k for k in whole]
    assert prompt_offsets(byte_level, ids, text) == whole


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "metaspace", "word_piece"])
def test_the_tokens_tile_the_text(family, request):
    tokenizer = request.getfixturevalue(family)
    text = "hello world hello"
    ids = tokenizer.encode(text, add_special_tokens=False)
    shown = tokenizer.decode(ids)
    offsets = prompt_offsets(tokenizer, ids, shown)
    assert offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] < len(shown)
    parts = [shown[a:b] for a, b in zip(offsets, [*offsets[1:], len(shown)])]
    assert "".join(parts) == shown and all(parts)


def test_only_special_tokens_that_the_text_shows_have_a_length(byte_level):
    bos, end = 1, 2
    hello = byte_level.encode("hello", add_special_tokens=False)
    assert prompt_offsets(byte_level, [bos, *hello], "hello")[:2] == [0, 0]
    assert prompt_offsets(byte_level, [bos, *hello], "<s>hello")[:2] == [0, 3]
    assert prompt_offsets(byte_level, [*hello, end], "hello")[-1] == 5
    assert prompt_offsets(byte_level, [bos], "") == [0]
    assert prompt_offsets(byte_level, [], "") == []


def test_an_answers_last_special_token_begins_at_its_end(byte_level):
    hello = byte_level.encode("hello", add_special_tokens=False)
    begins, place = answer_offsets(byte_level, [*hello, 2])
    assert begins[-1] == place == 5


def test_no_space_between_special_tokens_where_none_is_wanted():
    tokenizer = Tokenizer.of(word_piece_hf())
    assert tokenizer.token_bytes is None

    def text(spaces, prompt, ids, skip=False):
        detokenizer = detokenizer_for(tokenizer, prompt, skip, spaces)
        return "".join(map(detokenizer.feed, ids)) + detokenizer.flush()

    word = tokenizer.encode("hello", add_special_tokens=False)
    assert text(True, [], [*word, 1, 2, *word]) == "hello <s> </s> hello"
    assert text(False, [], [*word, 1, 2, *word]) == "hello <s></s> hello"
    assert text(True, [1], [2, 1]) == " </s> <s>"
    assert text(False, [1], [2, 1]) == "</s><s>"
    assert text(False, [1], [2, *word], skip=True).strip() == "hello"
