"""Conversion to GGUF: names, the order of rows, the stand-in tokenizer; and, where llama.cpp has
been installed for the benchmarks, the same tokens as transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from benchmarks.peers import servers
from benchmarks.peers.convert import (
    NotConvertible,
    architecture,
    gguf_name,
    interleave_rope,
    tensors,
)
from benchmarks.peers.install import Peers
from benchmarks.peers.tokenizer import save_stand_in
from engine.text.loading import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PEERS = Peers()
COMMON = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=None,
    eos_token_id=511,
    initializer_range=0.2,
)
TINY = {
    "llama": LlamaConfig(**COMMON, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**COMMON, head_dim=32, tie_word_embeddings=False),
}


@pytest.fixture(params=TINY)
def tiny(request, tmp_path):
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(TINY[request.param], dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    save_stand_in(tmp_path, 512, 511)
    return model, tmp_path


def test_names():
    assert gguf_name("model.layers.12.self_attn.q_norm.weight") == "blk.12.attn_q_norm.weight"
    assert gguf_name("model.norm.weight") == "output_norm.weight"
    with pytest.raises(NotConvertible, match="rotary"):
        gguf_name("model.layers.0.rotary.weight")
    with pytest.raises(NotConvertible, match="OPT"):
        architecture({"architectures": ["OPTForCausalLM"]})


def test_rows_of_a_head_go_from_halves_to_pairs():
    weight = torch.arange(2 * 6).reshape(12, 1)  # two heads of six rows: 0 … 5, 6 … 11
    got = interleave_rope(weight, 2).flatten().tolist()
    assert got == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_every_tensor_is_taken_once(tiny):
    model, folder = tiny
    config = json.loads((folder / "config.json").read_text())
    names = [name for name, _ in tensors(folder, config)]
    assert len(names) == len(set(names)) == sum(1 for _ in model.parameters())


def test_the_stand_in_has_a_text_for_every_id_and_reads_its_own_words(tmp_path):
    save_stand_in(tmp_path, 512, 511)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.vocab_size == 512 and tokenizer.eos_token_ids == [511]
    assert tokenizer.decode([300, 301]) == " w44 w45"
    assert tokenizer.decode(tokenizer.encode("Grüße w1")) == "Grüße w1"
    with pytest.raises(ValueError, match="256"):
        save_stand_in(tmp_path / "other", 100, None)


def test_a_tokenizer_that_is_there_stays(tmp_path):
    """A shape's folder may be a real model's, in the cache that all commands share."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("its own")
    save_stand_in(tmp_path, 512, 511)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"its own"}


@pytest.mark.skipif(not PEERS.has_llama, reason="llama.cpp is not in .peers/: make bench-peers")
def test_llama_cpp_draws_the_tokens_of_transformers(tiny):
    model, folder = tiny
    target, prompt = folder / "model.gguf", list(range(100, 120))
    path = os.pathsep.join([str(PEERS.llama_source / "gguf-py"), str(ROOT)])
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.peers.convert"),
            *(str(folder), str(target), "--dtype", "float32"),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    wanted = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=[511],
    )
    server = servers.llama_cpp(str(target), "float32", 1, PEERS)
    try:
        body = {"prompt": prompt, "n_predict": 24, "temperature": 0, "return_tokens": True}
        body |= {"ignore_eos": True, "cache_prompt": False}
        request = urllib.request.Request(
            f"http://{servers.HOST}:{server.port}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            got = json.load(answer)["tokens"]
    finally:
        server.close()
    assert got == wanted[0, 20:].tolist()
