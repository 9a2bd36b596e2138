"""Models that the adapter can't serve exactly are refused by name, before a wrong token."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import (
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    GPTJConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MptConfig,
    Phi3Config,
    T5Config,
)

from engine.config import EngineConfig
from engine.models import hf_check
from engine.models.errors import ModelError
from engine.models.hf_adapter import TransformersModel
from engine.models.length import max_model_len
from engine.models.loader import load_model
from tests.models.tiny_models import ADAPTED, VOCAB, make

CPU = torch.device("cpu")

SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

REFUSED = {
    "BloomForCausalLM": lambda: BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4),
    "FalconForCausalLM": lambda: FalconConfig(**SMALL),
    "GPTJForCausalLM": lambda: GPTJConfig(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, rotary_dim=4
    ),
    "MptForCausalLM": lambda: MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4),
    "MambaForCausalLM": lambda: MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4
    ),
    "JambaForCausalLM": lambda: JambaConfig(**SMALL),
    "T5ForConditionalGeneration": lambda: T5Config(vocab_size=VOCAB, d_model=32, num_layers=2),
    "Llama4ForCausalLM": lambda: Llama4TextConfig(**SMALL, head_dim=8),
    "Lfm2ForCausalLM": lambda: Lfm2Config(
        **SMALL, num_key_value_heads=2, layer_types=["conv", "full_attention"]
    ),
    "DeepseekV3ForCausalLM": lambda: DeepseekV3Config(
        **SMALL,
        intermediate_size=48,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
}


def mla(config_class):
    return config_class(
        **SMALL,
        intermediate_size=48,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )


LATENT = ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3")


@pytest.mark.parametrize("kind", [*LATENT, "deepseek_v32", "glm_moe_dsa", "youtu"])
def test_every_kind_with_latent_attention_is_refused_in_one_line(kind, tmp_path):
    refused_in_one_line(mla(transformers.CONFIG_MAPPING[kind]), tmp_path)


def test_sizes_that_contradict_each_other_are_refused_in_one_line(tmp_path):
    refused_in_one_line(transformers.Glm4MoeLiteConfig(**SMALL), tmp_path)


@pytest.mark.parametrize("more", [{}, {"pad_token_id": 0}])
def test_modernbert_decoder_is_refused_in_one_line(more, tmp_path):
    refused_in_one_line(transformers.ModernBertDecoderConfig(**SMALL, **more), tmp_path)


def refused_in_one_line(config, folder):
    """As config.json in a folder of its own."""
    config.architectures = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.save_pretrained(folder)
    options = EngineConfig(model=str(folder), load_format="dummy")
    with pytest.raises(ModelError, match=f"^{config.architectures[0]} can't be ") as caught:
        load_model(options, CPU)
    assert "\n" not in str(caught.value)


def adapt(config, tmp_path):
    return TransformersModel(tmp_path, config, CPU, torch.float32, dummy=True)


@pytest.mark.parametrize("architecture", REFUSED)
def test_refused_by_name(architecture, tmp_path):
    config = REFUSED[architecture]()
    config.architectures = [architecture]
    with pytest.raises(ModelError, match=rf"^{architecture} can't be served: ") as caught:
        adapt(config, tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_length_is_refused():
    with pytest.raises(ModelError, match="has no max_position_embeddings"):
        max_model_len(BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4))


def test_unknown_attention_argument_is_refused():
    module = torch.nn.Identity()
    config = Phi3Config(**SMALL, pad_token_id=0)
    with pytest.raises(ModelError, match="needs alibi_slopes"):
        hf_check.refuse_by_calls([(module, {"alibi_slopes": torch.ones(4)})], config, "SomeModel")
    hf_check.refuse_by_calls([(module, {"alibi_slopes": None, "softcap": 3.0})], config, "Some")


def test_state_outside_the_pages_is_found(tmp_path, monkeypatch):
    """Tokens that depend on their neighbours other than by attention: the logits say so."""
    config = ADAPTED["gpt2"]()
    inner = make(config)
    wte_forward = inner.transformer.wte.forward
    inner.transformer.wte.forward = lambda ids: wte_forward(ids) + wte_forward(ids).roll(1, dims=1)
    inner.save_pretrained(tmp_path)
    monkeypatch.setattr("engine.models.hf_adapter._load", lambda *_: inner)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    inner.set_attn_implementation("glasshouse_paged")
    with pytest.raises(ModelError, match="GPT2LMHeadModel can't be served: on pages its logits"):
        TransformersModel(tmp_path, config, CPU, torch.float32)


def test_longrope_is_held_to_the_length_where_nothing_changes(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 500.0}
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = Phi3Config(
        **SMALL,
        num_key_value_heads=2,
        pad_token_id=0,
        max_position_embeddings=128,
        original_max_position_embeddings=32,
        rope_parameters={**rope, **factors},
    )
    assert adapt(config, tmp_path).max_model_len == 32
