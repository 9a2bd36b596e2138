"""In bf16 the logits are transformers' own bf16 logits, but for rounding: 2e-2 of the greatest."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, Qwen3Config

from engine.config import POCKET_MODEL, EngineConfig
from engine.kernels import cpu
from engine.kernels.cpu.linear_ops import Layout
from engine.layers.linear import Linear
from engine.models.loader import load_model
from tests.models.paged_harness import PagedModel, Sequence

VOCAB = 1056  # 33 × 32: packed where the CPU's kernels want it
SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
CONFIGS = {
    "opt": OPTConfig(**SHARED, ffn_dim=352, word_embed_proj_dim=192),
    "llama": LlamaConfig(**SHARED, intermediate_size=352, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SHARED, intermediate_size=352, num_key_value_heads=6, head_dim=64),
}
CUTS = {"at once": [300], "in pieces": [200, 64, 33, 1, 1, 1], "one by one": [1] * 300}


@pytest.fixture(scope="module", params=[*CONFIGS, "pocket"])
def models(request, tmp_path_factory):
    """(folder, transformers' model in bf16)"""
    if request.param == "pocket":
        folder = POCKET_MODEL
    else:
        torch.manual_seed(0)
        folder = str(tmp_path_factory.mktemp(request.param))
        AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    return folder, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("cut", CUTS)
def test_bf16_logits_are_those_of_transformers(models, cut):
    folder, peer = models
    model = load_model(EngineConfig(model=folder, dtype="bfloat16"), torch.device("cpu"))
    vocab = peer.config.vocab_size
    text = torch.randint(3, vocab, (300,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = peer(torch.tensor([text])).logits[0].float()
    paged = PagedModel(model, block_size=16, cache_dtype=torch.bfloat16)
    found = paged.run(Sequence(text), CUTS[cut]).float()
    assert float((found - expected).abs().max() / expected.abs().max()) <= 2e-2


@pytest.fixture(scope="module")
def text(models):
    """(300 tokens, transformers' logits of them in bf16, and in fp32)"""
    _, peer = models
    tokens = torch.randint(
        3, peer.config.vocab_size, (300,), generator=torch.Generator().manual_seed(2)
    )
    with torch.inference_mode():
        rounded = peer(tokens[None]).logits[0].float()
        return tokens.tolist(), rounded, copy.deepcopy(peer).float()(tokens[None]).logits[0]


def error(logits, exact):
    return float((logits - exact).square().mean().sqrt())


def logits_of(models, tokens):
    model = load_model(EngineConfig(model=models[0], dtype="bfloat16"), torch.device("cpu"))
    paged = PagedModel(model, block_size=16, cache_dtype=torch.bfloat16)
    return paged.run(Sequence(tokens), [300])


def test_bf16_logits_are_nearer_to_the_exact_ones_than_transformers_are(models, text):
    """The residual stream and the logits aren't rounded. A model of few layers gains least."""
    tokens, rounded, exact = text
    found = logits_of(models, tokens)
    assert found.dtype is torch.float32
    assert error(found, exact) < 0.8 * error(rounded, exact)


def test_products_that_are_added_or_turned_are_not_rounded(models, text, monkeypatch):
    """Those of o and down, which the residual stream takes, and q and k before the rotation."""
    ops = cpu.native()
    if ops is None or ops.variant == "portable":
        pytest.skip("torch multiplies here, and rounds what it returns")
    tokens, _, exact = text
    kept = error(logits_of(models, tokens), exact)
    product = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, x, wide=False: product(self, x))
    assert kept < 0.97 * error(logits_of(models, tokens), exact)


def test_weights_are_packed(models):
    """If weights weren't packed, the test above would not have tested packed ones."""
    ops = cpu.native()
    if ops is None or not ops.panel:
        pytest.skip("kernels of this machine read weights as they are, or none were built")
    model = load_model(EngineConfig(model=models[0], dtype="bfloat16"), torch.device("cpu"))
    wide = [p for p in model.parameters() if p.dim() > 1 and len(p) != 514]  # not OPT's positions
    best = Layout.TILES if ops.tiles else Layout.PANELS
    assert wide and all(Layout.of(p) is best for p in wide)
