"""A tokenizer of every family, and a recorder."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from engine.text.tokenizer import Tokenizer
from engine.trace.recorder import Recorder
from tests.text.tiny_tokenizers import byte_fallback_hf, byte_level_hf, metaspace_hf, word_piece_hf


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer.of(byte_level_hf(), eos_token_ids=[2])


@pytest.fixture(scope="session")
def metaspace() -> Tokenizer:
    return Tokenizer.of(metaspace_hf(), eos_token_ids=[2])


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    return Tokenizer.of(byte_fallback_hf(), eos_token_ids=[2])


@pytest.fixture(scope="session")
def word_piece() -> Tokenizer:
    return Tokenizer.of(word_piece_hf(), eos_token_ids=[2])


@pytest.fixture(scope="session")
def slow() -> Tokenizer:
    """Written in Python, each token one byte."""
    return Tokenizer.of(ByT5Tokenizer(), eos_token_ids=[1])


@pytest.fixture
def recorder():
    recorder = Recorder("full", src="server")
    yield recorder
    recorder.close()
