"""A tiny Llama with random weights, and its runner."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.trace.recorder import Recorder
from engine.worker.model_runner import ModelRunner
from tests.worker.worker_kit import VOCAB, Driver, make_config


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> tuple[str, LlamaForCausalLM]:
    """(folder, the model in transformers)"""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,  # sharp distributions, so that greedy texts don't hang on rounding
        tie_word_embeddings=False,
        eos_token_id=None,  # or generate would end at it
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def events() -> list:
    return []


@pytest.fixture
def runner(tiny, events):
    recorder = Recorder(level="steps")
    recorder.subscribe(events.extend)
    runner = ModelRunner(make_config(tiny[0]), recorder)
    runner.load()
    yield runner
    recorder.close()


@pytest.fixture
def driver(runner) -> Driver:
    return Driver(runner)
