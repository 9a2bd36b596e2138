"""The whole engine on Triton's kernels, in the interpreter: the same tokens as on plain torch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from engine_on_tokens import TokenEngine
from transformers import AutoModelForCausalLM, OPTConfig, Qwen3Config

import engine.kernels
from engine.trace.events import KernelLaunched

MODELS = {
    "qwen3": Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
    ),
    "opt": OPTConfig(
        vocab_size=97,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [3], [20, 21, 22, 23, 24]]


def answers(folder, monkeypatch, kernels) -> tuple[list, Counter]:
    """(tokens of each prompt, launches by name and backend)"""
    for name in ("activation", "attention", "embedding", "linear", "norm", "rotary"):
        monkeypatch.setattr(f"engine.layers.{name}.kernels_for", lambda device: kernels)
    options = {"block_size": 4, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 6}
    with TokenEngine(folder, max_num_seqs=4, **options) as on_tokens:
        on_tokens.recorder.level = "full"
        tokens = on_tokens.run(PROMPTS, temperature=0.0, max_tokens=4, ignore_eos=True)
        launched = on_tokens.recorded(KernelLaunched)
    return tokens, Counter((event.name, event.backend) for event in launched)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_tokens_as_plain_torch(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(MODELS[name]).float().save_pretrained(tmp_path)
    expected, none = answers(tmp_path, monkeypatch, engine.kernels.TORCH)
    found, launched = answers(tmp_path, monkeypatch, engine.kernels.on_cuda())
    assert found == expected
    assert not none
    wanted = {"paged_attention", "rotate_and_write"}
    wanted |= {"rms_norm", "add_rms_norm", "silu_and_mul"} if name == "qwen3" else {"layer_norm"}
    assert wanted <= {kernel for kernel, backend in launched if backend == "triton"}
