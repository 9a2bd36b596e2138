"""List the models that are measured: pocket and SmolLM2 with their own weights, and random ones."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
)

from benchmarks.shape_names import LARGE_SHAPES, SHAPES
from engine.config import POCKET_MODEL
from engine.models.errors import ModelError
from engine.models.hub import find_model


def shape(name: str) -> PretrainedConfig:
    """Return the architecture of a shape, as its model card states it."""
    if name == "pocket":
        return AutoConfig.from_pretrained(POCKET_MODEL, trust_remote_code=False)
    if name == "opt-125m":
        return OPTConfig()  # transformers' default is facebook/opt-125m
    if name == "smollm2-135m":
        return LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_theta=100000.0,
            tie_word_embeddings=True,
        )
    if name == "qwen3-0.6b":
        return Qwen3Config(
            vocab_size=151936,
            hidden_size=1024,
            intermediate_size=3072,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            rope_theta=1000000.0,
            tie_word_embeddings=True,
        )
    known = ", ".join([*SHAPES, *LARGE_SHAPES])
    raise ValueError(f"shape {name!r} is unknown: choose one of {known}")


def weights_for(name: str, folder: Path, dtype: torch.dtype) -> str:
    """Return the folder to load for a shape.

    With real weights where there are such, so that lengths, stop tokens and cached prefixes are
    real; else random ones, saved under `folder`.
    """
    if name == "pocket":
        return POCKET_MODEL
    if name == "smollm2-135m":
        try:
            return str(find_model("smollm2", None, None))
        except ModelError as error:
            print(f"{name} has random weights here: {error}", file=sys.stderr)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape(name), dtype=dtype, trust_remote_code=False)
    model.save_pretrained(folder / name)
    return str(folder / name)
