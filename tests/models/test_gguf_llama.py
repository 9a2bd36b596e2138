"""A Llama model in a GGUF file becomes the model that transformers has."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from engine.models.errors import ModelError
from engine.models.formats.gguf_convert import convert
from engine.models.formats.gguf_model import IN_A_LAYER, OUTSIDE, ROPE_FACTORS
from tests.models.gguf_files import Wide, file

TOKENS = ["<s>", "</s>", "<|end|>", "a", "b", "Ġ", "1", "2", "ab", "Ġab", "Ċ"]
MERGES = ["a b", "Ġ ab"]
CONFIG = LlamaConfig(
    vocab_size=len(TOKENS),
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)


def metadata(**changed) -> dict:
    found = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 64,
        "llama.embedding_length": 48,
        "llama.feed_forward_length": 80,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * 8,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}",
    }
    return {key: of for key, of in (found | changed).items() if of is not None}


def tensors(model) -> dict[str, np.ndarray]:
    """transformers' weights as llama.cpp's converter writes them: rows of q and k in pairs."""
    found = {}
    for name, called in OUTSIDE.items():
        found[name] = model.state_dict()[called]
    for layer in range(2):
        for name, called in IN_A_LAYER.items():
            weight = model.state_dict()[f"model.layers.{layer}.{called}.weight"]
            if name in ("attn_q", "attn_k"):
                heads = 6 if name == "attn_q" else 2
                parted = weight.view(heads, 2, len(weight) // heads // 2, -1)
                weight = parted.transpose(1, 2).reshape(weight.shape)
            found[f"blk.{layer}.{name}.weight"] = weight
    return {name: weight.float().numpy() for name, weight in found.items()}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16).eval()


def converted(tmp_path, said: dict, weights: dict) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(file(said, weights))
    convert(source, tmp_path, lambda done, total: None)


def test_the_converted_model_is_transformers_own(model, tmp_path):
    converted(tmp_path, metadata(), tensors(model))
    found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name
    ids = torch.tensor([[3, 4, 5, 9, 1]])
    with torch.inference_mode():
        assert torch.equal(found(ids).logits, model(ids).logits)
    assert found.config.rms_norm_eps == 1e-5


def test_numbers_are_rounded_to_the_nearest(model, tmp_path):
    weights = tensors(model)
    exact = np.random.default_rng(0).normal(size=weights["token_embd.weight"].shape)
    weights["token_embd.weight"] = exact.astype(np.float32)
    converted(tmp_path, metadata(), weights)
    found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = torch.from_numpy(exact.astype(np.float32)).bfloat16()
    assert torch.equal(found.model.embed_tokens.weight.data, expected)


def test_the_tokenizer_cuts_digits_and_finds_special_tokens(model, tmp_path):
    converted(tmp_path, metadata(), tensors(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode("ab ab12</s>") == [8, 9, 6, 7, 1]
    assert tokenizer.encode("a<|end|>b") == [3, 2, 4]
    assert tokenizer.decode([8, 9, 6, 1], skip_special_tokens=True) == "ab ab1"
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 1


def test_a_first_token_stands_before_a_text_where_the_file_wants_it(model, tmp_path):
    converted(tmp_path, metadata(**{"tokenizer.ggml.add_bos_token": True}), tensors(model))
    assert AutoTokenizer.from_pretrained(tmp_path).encode("ab") == [0, 8]


SCORED = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [-float(i) for i in range(11)]}
REFUSED = {
    "another architecture": (
        {"general.architecture": "bert"},
        "'bert'; served are models of llama",
    ),
    "no size": ({"llama.block_count": None}, "llama.block_count is None"),
    "no number": ({"llama.block_count": "2"}, "llama.block_count is '2'"),
    "no layers": ({"llama.block_count": 0}, "llama.block_count is 0"),
    "2^32 layers": ({"llama.block_count": 2**32 - 1}, "more layers than it has tensors"),
    "a layer less": ({"llama.block_count": 1}, "lacks the tensor blk.1"),
    "another width": ({"llama.feed_forward_length": 96}, "ffn_gate.* has the shape"),
    "half of a head turned": ({"llama.rope.dimension_count": 4}, "only part of a head"),
    "scaled positions": ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn'"),
    "an unknown cut": ({"tokenizer.ggml.pre": "mystery"}, "the rule 'mystery'"),
    "no cut": ({"tokenizer.ggml.pre": None}, "pre is missing"),
    "no causal model's": ({"tokenizer.ggml.model": "bert"}, "kind 'bert'"),
    "no scores": ({"tokenizer.ggml.model": "llama"}, "a score for each token"),
    "a token twice": ({"tokenizer.ggml.tokens": ["a"] * 11}, "a token twice"),
    "a merge of nothing": ({"tokenizer.ggml.merges": ["a z"]}, "merges 'a z'"),
    "an end beyond the vocabulary": ({"tokenizer.ggml.eos_token_id": 11}, "eos token is 11"),
    "a list for a kind": ({"tokenizer.ggml.model": ["gpt2"]}, r"of kind \['gpt2'\]"),
    "a list for a cut": ({"tokenizer.ggml.pre": ["smollm"]}, r"rule \['smollm'\]"),
    "a base beyond 32 bits": ({"llama.rope.freq_base": Wide(1e300)}, "no place in 32 bits"),
    "a base below 32 bits": ({"llama.rope.freq_base": Wide(1e-300)}, "no place in 32 bits"),
    "positions divided by nearly nothing": (
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": Wide(1e-308)},
        "scaling.type is 'yarn'",
    ),
    "scores that are words": (SCORED | {"tokenizer.ggml.scores": ["x"] * 11}, "finite numbers"),
    "scores that are no numbers": (
        SCORED | {"tokenizer.ggml.scores": [float("nan")] * 11},
        "finite numbers",
    ),
    "a scored token of 2^19 characters": (
        SCORED | {"tokenizer.ggml.tokens": [*TOKENS[:-1], "a" * 2**19]},
        "has 524288 characters",
    ),
    "heads of 2^32 dimensions with factors": (
        {
            "llama.rope.dimension_count": None,
            "llama.attention.key_length": 2**32 - 2,
            "factors": True,
        },
        "none of Llama 3's",
    ),
    "kinds of other tokens": ({"tokenizer.ggml.token_type": [1]}, "of each token"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_right_is_refused(case, model, tmp_path):
    changed, says = REFUSED[case]
    said, weights = metadata(**changed), tensors(model)
    if said.pop("factors", False):
        weights[ROPE_FACTORS] = np.ones(4, np.float32)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=says) as raised:
            converted(tmp_path, said, weights)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "model.safetensors").exists()
