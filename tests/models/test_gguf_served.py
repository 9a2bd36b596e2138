"""A GGUF file as --model: the model of transformers with the numbers that its blocks stand for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from engine.config import EngineConfig
from engine.fit.estimate import make_plan
from engine.fit.report import report
from engine.kernels import BACKENDS, TORCH, Backend
from engine.models.errors import ModelError
from engine.models.formats.gguf_blocks import BLOCKS
from engine.models.formats.gguf_model import IN_A_LAYER, LLAMA3_LENGTH, NORMS_OF_HEADS, OUTSIDE
from engine.models.loader import load_model
from engine.models.named import local_folder
from engine.text.loading import load_text
from engine.trace.recorder import Recorder
from tests.models import tiny_models
from tests.models.gguf_files import Blocks, file, random_blocks
from tests.support.engine_on_tokens import TokenEngine

TOKENS = ["<s>", "</s>", "<|end|>", *"abcdefgh", "Ġ", "1", "2", "ab", "Ġab", "Ċ"]
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
NARROW = {**SIZES, "hidden_size": 96, "head_dim": 32, "intermediate_size": 160}  # not whole 256s
F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K = 0, 2, 3, 6, 7, 8, 12, 13, 14
PROMPTS = [[5, 3, 9], [4] * 17, list(range(16, 2, -1))]


def rope(theta: float = 10000.0, kind: str = "default", **more) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": LLAMA3_LENGTH,
}
# architecture, what transformers makes, types by the tensor's last part but one, metadata
MODELS = {
    "llama, a mix of K types, tied": (
        "llama",
        LlamaConfig(
            **{**SIZES, "max_position_embeddings": 2 * LLAMA3_LENGTH},
            **rope(500000.0, "llama3", **LLAMA3),
            tie_word_embeddings=True,
        ),
        {"token_embd": Q6_K, "attn_v": Q6_K, "ffn_down": Q5_K, "": Q4_K},
        {},
    ),
    "llama, old types, a head of its own": (
        "llama",
        LlamaConfig(**NARROW, **rope(5000.0), tie_word_embeddings=False),
        {"token_embd": Q5_1, "output": Q8_0, "attn_v": Q5_0, "ffn_down": Q4_1, "": Q4_0},
        {"llama.attention.key_length": 32},
    ),
    "mistral with a window": (
        "llama",
        MistralConfig(**SIZES, **rope(), sliding_window=8, tie_word_embeddings=False),
        {"token_embd": F32, "output": F32, "attn_k": F32, "": Q8_0},
        {"llama.attention.sliding_window": 8},
    ),
    "qwen2, with biases": (
        "qwen2",
        Qwen2Config(
            **{name: of for name, of in NARROW.items() if name != "head_dim"}
            | {"hidden_size": 128},
            **rope(kind="linear", factor=2.0),
            tie_word_embeddings=True,
        ),
        {"token_embd": Q8_0, "": Q4_1},
        {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0},
    ),
    "qwen3, with norms of heads": (
        "qwen3",
        Qwen3Config(**NARROW, **rope(), tie_word_embeddings=False),
        {"token_embd": Q4_0, "output": Q8_0, "": Q5_0},
        {"qwen3.attention.key_length": 32},
    ),
}


def metadata(architecture: str, config, **more) -> dict:
    arch = {
        "block_count": 2,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    theta = config.rope_parameters["rope_theta"]
    return {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": of for key, of in arch.items()},
        f"{architecture}.rope.freq_base": float(theta),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 4] + [1] * (len(TOKENS) - 3),
        "tokenizer.ggml.merges": ["a b", "Ġ ab"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.chat_template": "{{ messages[0].content }}",
        **more,
    }


def as_written(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp's converter orders them: the halves of each head in pairs."""
    parted = weight.view(heads, 2, len(weight) // heads // 2, -1)
    return parted.transpose(1, 2).reshape(weight.shape)


def as_meant(weight: torch.Tensor, heads: int) -> torch.Tensor:
    parted = weight.view(heads, len(weight) // heads // 2, 2, -1)
    return parted.transpose(1, 2).reshape(weight.shape)


def make(architecture: str, config, kinds: dict) -> tuple[dict, torch.nn.Module]:
    """(tensors of the file, transformers' model with the numbers that they stand for)."""
    rng = np.random.default_rng(3)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state, tensors = model.state_dict(), {}
    names = {"output_norm.weight": OUTSIDE["output_norm.weight"]}
    names["token_embd.weight"] = OUTSIDE["token_embd.weight"]
    if not config.tie_word_embeddings:
        names["output.weight"] = OUTSIDE["output.weight"]
    for layer in range(2):
        inside = IN_A_LAYER | (NORMS_OF_HEADS if architecture == "qwen3" else {})
        for name, called in inside.items():
            names[f"blk.{layer}.{name}.weight"] = f"model.layers.{layer}.{called}.weight"
        if architecture == "qwen2":
            for name in ("attn_q", "attn_k", "attn_v"):
                called = f"model.layers.{layer}.{IN_A_LAYER[name]}.bias"
                state[called].normal_()
                names[f"blk.{layer}.{name}.bias"] = called
    for name, called in names.items():
        part, weight = name.split(".")[-2], state[called]
        kind = kinds.get(part, kinds[""])
        heads = {"attn_q": 4, "attn_k": 2}.get(part, 0) if architecture == "llama" else 0
        if "norm" in name:
            weight += 0.1 * torch.randn_like(weight)
        if weight.dim() == 1 or kind == F32:
            tensors[name] = (as_written(weight, heads) if heads else weight).numpy()
            continue
        blocks = random_blocks(kind, *weight.shape, rng)
        numbers = torch.from_numpy(dequantize(blocks.raw, GGMLQuantizationType(kind)))
        weight.copy_(as_meant(numbers, heads) if heads else numbers)
        tensors[name] = blocks
    return tensors, model


@pytest.fixture(scope="module", params=MODELS)
def served(request, tmp_path_factory):
    """(file, transformers' model)"""
    architecture, config, kinds, more = MODELS[request.param]
    tensors, model = make(architecture, config, kinds)
    if "llama3" in str(config.rope_parameters):
        plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2) / 64)
        tensors["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq.numpy()
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    path.write_bytes(file(metadata(architecture, config, **more), tensors))
    return path, model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.models.formats.gguf_folder._kept", lambda: tmp_path / "cache")


def answers_of(model, prompts: list[list[int]]) -> list[list[list[int]]]:
    return [[answer] for answer in tiny_models.greedy(model, prompts, 12)]


def test_greedy_equals_transformers(served, backend):
    path, model = served
    eager = backend == "torch"  # tapes are of our own kernels
    with TokenEngine(path, block_size=4, max_model_len=64, enforce_eager=eager) as engine:
        found = engine.run(PROMPTS, temperature=0.0, max_tokens=12)
    assert found == answers_of(model, PROMPTS)


def test_the_plan_counts_what_is_loaded(served, monkeypatch):
    """In plain torch: packed for a kernel, weights may be padded."""
    path, _ = served
    monkeypatch.setitem(BACKENDS, "cpu", Backend(lambda: TORCH, asynchronous=False))
    recorder, events = Recorder("steps"), []
    recorder.subscribe(events.extend)
    load_model(EngineConfig(model=str(path), device="cpu"), torch.device("cpu"), recorder=recorder)
    recorder.close()
    plan = make_plan(str(path))
    assert "\nquantized: GGUF, " in report(plan)
    assert plan.shape.weight_bytes == pytest.approx(events[-1].num_bytes, rel=0.01)


def test_its_tokenizer_and_template_come_from_the_file(served):
    path, _ = served
    tokenizer, defaults = load_text(EngineConfig(model=str(path)))
    assert tokenizer.encode("ab 12") == [TOKENS.index(t) for t in ("ab", "Ġ", "1", "2")]
    assert tokenizer.facts.chat_template == "{{ messages[0].content }}"
    assert {1, 2} <= set(defaults.eos_token_ids)


def first(tmp_path: Path, **changed) -> tuple[dict, dict]:
    architecture, config, kinds, more = MODELS["llama, old types, a head of its own"]
    tensors, _ = make(architecture, config, kinds)
    return metadata(architecture, config, **more, **changed), tensors


def test_a_folder_with_one_file_is_that_file(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a-Q4_0.gguf").write_bytes(file(*first(tmp_path)))
    (tmp_path / "m" / "config.json").write_text("{}")  # some repositories have one beside it
    folder = Path(local_folder(str(tmp_path / "m")))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert local_folder(str(tmp_path / "m" / "a-Q4_0.gguf")) == str(folder)
    (tmp_path / "m" / "a-Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"several GGUF files \(a-Q4_0.gguf, a-Q8_0.gguf\); name"):
        local_folder(str(tmp_path / "m"))


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(file(*first(tmp_path)))
    before = local_folder(str(path))
    path.write_bytes(file(*first(tmp_path, **{"general.name": "another"})))
    assert local_folder(str(path)) != before


def test_parts_are_one_model(tmp_path):
    said, tensors = first(tmp_path)
    names = sorted(tensors)
    parts = [said, {"split.no": 1}]
    for index, some in enumerate((names[:7], names[7:])):
        path = tmp_path / f"m-{index + 1:05}-of-00002.gguf"
        path.write_bytes(file(parts[index], {name: tensors[name] for name in some}))
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(file(said, tensors))
    answers = []
    for model in (path, whole):
        with TokenEngine(model, block_size=4) as engine:
            answers.append(engine.run(PROMPTS, temperature=0.0, max_tokens=4))
    assert answers[0] == answers[1]
    (tmp_path / "m-00001-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"one of 2 parts, and m-00001-of-00002\.gguf is not"):
        local_folder(str(path))


def refused(tmp_path, said: dict, tensors: dict, match: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(file(said, tensors))
    with pytest.raises(ModelError, match=match) as error:
        config = EngineConfig(model=str(path), device="cpu", dtype="float32")
        load_model(config, torch.device("cpu"))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_what_cannot_be_served_is_refused_in_one_line(tmp_path):
    said, tensors = first(tmp_path)
    refused(tmp_path, said | {"general.type": "adapter"}, tensors, "holds a adapter")
    odd = {**tensors, "blk.0.attn_sinks.weight": np.zeros(4)}
    refused(tmp_path, said, odd, "lacks the tensor blk.0.attn_sinks.weight, or has no use for it")
    wide = {**tensors, "output.weight": np.zeros((5, 96))}
    refused(tmp_path, said, wide, r"output.weight has the shape \[5, 96\], its sizes say")
    refused(tmp_path, said, {**tensors, "rope_freqs.weight": np.ones(16) * 3}, "none of Llama 3's")
    scaled = said | {"llama.rope.scaling.type": "longrope"}
    refused(tmp_path, scaled, tensors, "rope.scaling.type is 'longrope'")
    refused(tmp_path, said | {"tokenizer.ggml.pre": "klingon"}, tensors, "'klingon'")


def test_scales_that_are_no_numbers_are_refused(tmp_path):
    said, tensors = first(tmp_path)
    kind, raw, width = tensors["blk.1.ffn_up.weight"]
    raw = raw.copy()
    raw[5, :2] = np.array([np.inf], "<f2").view(np.uint8)
    bad = {**tensors, "blk.1.ffn_up.weight": Blocks(kind, raw, width)}
    refused(
        tmp_path,
        said,
        bad,
        "1.mlp.up_proj.weight has scales or numbers that aren't",
    )


def test_every_quantized_type_is_served_by_one_of_the_models():
    served = {kind for _, _, kinds, _ in MODELS.values() for kind in kinds.values()}
    assert served == {F32} | {number for number, block in BLOCKS.items() if block.bits}
