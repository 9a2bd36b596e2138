from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.config import EngineConfig
from engine.text.errors import TextError
from engine.text.generation_config import read_defaults
from engine.text.loading import load_text, load_tokenizer
from engine.text.tokenizer import Tokenizer
from tests.text.tiny_tokenizers import CORPUS, byte_level_hf

FAMILIES = ["byte_level", "metaspace", "byte_fallback", "word_piece", "slow"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_transformers(family, special, request):
    tokenizer = request.getfixturevalue(family)
    for text in CORPUS:
        assert tokenizer.encode(text, special) == tokenizer.hf.encode(
            text, add_special_tokens=special
        )


def test_a_folder_with_everything(tmp_path):
    byte_level_hf().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2, 9]}))
    tokenizer, _ = load_text(EngineConfig(model=str(tmp_path)))
    assert tokenizer.eos_token_ids == [2, 7, 9]
    text = "Hello, café 😀"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.vocab_size == len(tokenizer.hf)


def test_one_end_of_sequence_and_none_in_the_generation_config(tmp_path):
    byte_level_hf().save_pretrained(tmp_path)
    config = EngineConfig(model=str(tmp_path))
    assert load_text(config)[0].eos_token_ids == [2]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert load_text(config)[0].eos_token_ids == [2, 5]


def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    byte_level_hf().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}})
    )
    with pytest.raises(TextError, match="No tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
    assert read_defaults(str(tmp_path)).eos_token_ids == []  # config.json's code isn't run either


def test_no_tokenizer_is_one_clear_line(tmp_path):
    with pytest.raises(TextError, match="No tokenizer could be loaded from") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)
    assert error.value.param == "model"


def test_truncation_saved_with_the_tokenizer_does_not_cut_prompts():
    hf = byte_level_hf()
    hf.backend_tokenizer.enable_truncation(3)
    hf.backend_tokenizer.enable_padding(length=100)
    assert len(Tokenizer.of(hf).encode("one two three four five six")) == len(
        byte_level_hf().encode("one two three four five six")
    )


def test_a_path_without_a_folder_is_not_looked_for_on_the_hub(tmp_path):
    for source in (str(tmp_path / "missing"), "./missing"):
        with pytest.raises(TextError, match="is not a folder"):
            load_tokenizer(source)


@pytest.mark.parametrize("family", ["byte_level", "slow"])
def test_many_threads_at_once(family, request):
    tokenizer = request.getfixturevalue(family)
    texts = [text * 20 for text in CORPUS]
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(tokenizer.encode, texts)) == expected
            assert list(pool.map(tokenizer.decode, expected)) == [
                tokenizer.decode(ids) for ids in expected
            ]


def test_ids_out_of_range(byte_level):
    assert byte_level.decode([byte_level.vocab_size + 5]) == ""
    for bad in (-1, 2**32):
        with pytest.raises(TextError, match="not a token id"):
            byte_level.decode([bad])


@pytest.mark.parametrize("family", FAMILIES)
def test_token_texts_join_to_the_text(family, request):
    """What log-probabilities show, token by token, is the text, spaces included."""
    tokenizer = request.getfixturevalue(family)
    anchor = tokenizer.encode("hello", add_special_tokens=False)
    ids = anchor + tokenizer.encode("hello the engine runs", add_special_tokens=False)
    joined = "".join(tokenizer.token(token_id).text for token_id in ids)
    assert joined.lstrip() == tokenizer.decode(ids).lstrip()
    for token_id in ids:
        token = tokenizer.token(token_id)
        assert token.bytes == token.text.encode()


def test_half_a_character_in_log_probabilities(byte_level):
    table = byte_level.token_bytes
    of_byte = {table.bytes_of(i): i for i in range(3, 259)}
    token = byte_level.token(of_byte[b"\xe2"])
    assert (token.text, token.bytes) == ("bytes:\\xe2", b"\xe2")
    assert byte_level.token(2).text == "</s>"
    texts = {byte_level.token(i).text for i in of_byte.values()}
    assert len(texts) == 256  # each has a name of its own: none hides another in top_logprobs


@pytest.mark.parametrize("family", ["byte_level", "byte_fallback", "metaspace"])
def test_bad_words_are_found_with_and_without_a_space(family, request):
    tokenizer = request.getfixturevalue(family)
    sequences = tokenizer.bad_words(["engine"])
    texts = {
        b"".join(map(tokenizer.token_bytes.bytes_of, sequence)).decode() for sequence in sequences
    }
    assert {"engine", " engine"} <= texts
    assert len(sequences) == len({tuple(s) for s in sequences})
    running = tokenizer.encode("the engine runs", add_special_tokens=False)
    assert any(
        running[start : start + len(sequence)] == sequence
        for sequence in sequences
        for start in range(len(running))
    )


@pytest.mark.parametrize("word", ["", "  "])
def test_bad_words_that_are_no_words(byte_level, word):
    with pytest.raises(TextError, match="no token can spell") as error:
        byte_level.bad_words([word])
    assert error.value.param == "bad_words"
