"""Tiny models of transformers with random weights, large enough to tell right from wrong."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97
LENGTH = 64

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
_OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
}
_GEMMA = {**_LLAMA, "head_dim": 8, "num_hidden_layers": 3, "sliding_window": 8}


def _rope(kind: str, **more) -> dict:
    return {"rope_type": kind, "rope_theta": 500.0, **more}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_ORIGINAL = {"original_max_position_embeddings": 16}

NATIVE = {
    "llama": lambda: LlamaConfig(**_LLAMA),
    "llama-biased-tied": lambda: LlamaConfig(
        **_LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama-llama3": lambda: LlamaConfig(
        **_LLAMA, rope_parameters=_rope("llama3", **_LLAMA3, **_ORIGINAL)
    ),
    "llama-linear": lambda: LlamaConfig(**_LLAMA, rope_parameters=_rope("linear", factor=2.0)),
    "llama-dynamic": lambda: LlamaConfig(**_LLAMA, rope_parameters=_rope("dynamic", factor=2.0)),
    "llama-yarn": lambda: LlamaConfig(
        **_LLAMA, rope_parameters=_rope("yarn", factor=4.0, **_ORIGINAL)
    ),
    "mistral": lambda: MistralConfig(**_LLAMA, sliding_window=8),
    "qwen2": lambda: Qwen2Config(**_LLAMA, tie_word_embeddings=True),
    "qwen2-windows": lambda: Qwen2Config(
        **_LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_LLAMA, head_dim=16),
    "opt": lambda: OPTConfig(**_OPT, word_embed_proj_dim=32),
    "opt-350m": lambda: OPTConfig(**_OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
}

ADAPTED = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4
    ),
    "gemma2": lambda: Gemma2Config(
        **_GEMMA, attn_logit_softcapping=5.0, final_logit_softcapping=3.0, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_GEMMA,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi3": lambda: Phi3Config(**_LLAMA, pad_token_id=0, sliding_window=8),
    "gpt-neox": lambda: GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
    ),
    "gpt-oss": lambda: GptOssConfig(
        **_LLAMA,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
}


def make(config, seed: int = 0):
    """The model in fp32, every weight random: biases and norms too, which start as 0 and 1.

    It attends eagerly: torch's SDPA, the default of some models in some versions of transformers,
    leaves out soft-caps and sinks without a word."""
    torch.manual_seed(seed)
    config.initializer_range = 0.2
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif float(parameter.std()) < 0.1:  # a model with an initialisation of its own
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def save(config, folder, seed: int = 0, **options):
    """Make the model and save it under `folder`. Returns the model."""
    model = make(config, seed)
    model.save_pretrained(folder, **options)
    return model


def greedy(reference, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Return transformers' greedy tokens after each prompt, whatever ends a text."""
    found = []
    for prompt in prompts:
        ids = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(ids[0, len(prompt) :].tolist())
    return found
