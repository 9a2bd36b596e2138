"""A model is loaded into one copy of its weights, and what loading took is given back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import loading

WIDTH, INNER, LAYERS, VOCABULARY, GROUP = 1024, 4096, 6, 1000, 128
LINEARS = {
    **{f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")},
    "mlp.down_proj": (WIDTH, INNER),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
MB = 1 << 20


def plain(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((outputs, inputs), 0.01, dtype=torch.bfloat16)}


def gptq(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    groups = inputs // GROUP
    return {
        "qweight": torch.full((inputs // 8, outputs), 0x12345678, dtype=torch.int32),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, outputs), 0.01, dtype=torch.float16),
    }


def model(folder: Path, make, said: dict[str, object]) -> Path:
    tensors = {"model.embed_tokens.weight": plain(VOCABULARY, WIDTH)["weight"]}
    tensors["model.norm.weight"] = torch.ones(WIDTH)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, shape in LINEARS.items():
            tensors |= {f"{prefix}.{name}.{part}": one for part, one in make(*shape).items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(WIDTH)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | said))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("make", "said"), [(plain, {}), (gptq, {"quantization_config": GPTQ})], ids=["bf16", "gptq"]
)
def test_weights_are_never_in_memory_twice(make, said, tmp_path):
    """Memory that a packed matrix leaves goes back to the system, matrix by matrix.

    The C library kept it, so that a model took twice its size for as long as it was served.
    """
    found = loading.measure_load(str(model(tmp_path / "model", make, said)))
    assert found.weights > 50 * MB
    assert found.weights <= found.after < found.weights + 40 * MB
    assert found.peak < 1.5 * found.weights + 20 * MB


@pytest.mark.parametrize("keep", [False, True])
def test_files_are_read_to_their_ends(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "BUFFER", 4096)
    files = [tmp_path / "a", tmp_path / "b"]
    for size, file in enumerate(files):
        file.write_bytes(b"x" * (10_000 + size))
    read = []
    monkeypatch.setattr(
        loading.mmap, "mmap", lambda _, size: read.append(bytearray(size)) or read[-1]
    )
    assert loading.read_seconds(files, keep) > 0
    assert [len(buffer) for buffer in read] == ([10_000, 10_001] if keep else [4096, 4096])
    assert all(set(buffer) == {ord("x")} for buffer in read)


def test_the_table_says_what_was_measured(tmp_path):
    loads = [loading.Load(s, 150 * 10**6, 110 * 10**6, 10**8)._asdict() for s in (3.0, 1.0, 2.0)]
    read = {"read_s": [0.1, 0.5, 0.6], "read_and_kept_s": [0.5, 1.0, 4.0]}
    row = {"model": "m", "file_bytes": 10**8, **read, "loads": loads}
    where = {"cpu": "a CPU", "threads": 2, "torch": "2", "date": "today"}
    [line] = loading.markdown([row], where).splitlines()[4:]
    assert line == "| m | 100 | 0.50 | 1.00 | 2.00 | 2.0× | 100 | 1.50 | 1.10 |"
