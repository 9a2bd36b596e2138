"""List public shapes of well-known models, as their config.json states them: sizes only.

`engine.fit` chooses a GPU from them without a network. A name is found with any owner and any
ending (-Instruct, -chat, -hf): these share the shape.
"""

from __future__ import annotations

import re
from typing import Any

_NAMED = {"smollm2": "smollm2-135m"}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
"""What checkpoints whose names end in -AWQ are, as AutoAWQ makes them."""
_ENDINGS = re.compile(r"(^meta-)|(-(instruct|chat|base|hf|it)(?=-|$))")


def known_config(model: str) -> dict[str, Any] | None:
    """Return the sizes of a well-known model; None for others.

    model: its hub id, the last part of it, or the name by which the engine fetches it.
    """
    name = _NAMED.get(model, model).rpartition("/")[2].lower()
    config = _SHAPES.get(_ENDINGS.sub("", name.removesuffix("-awq")))
    if config is None or not name.endswith("-awq"):
        return config
    return {**config, "quantization_config": _AWQ}


def known_models() -> list[str]:
    """List the names in the table."""
    return list(_SHAPES)


def _llama(
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    positions: int,
    architecture: str = "LlamaForCausalLM",
    dtype: str = "bfloat16",
    **more: Any,
) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "dtype": dtype,
        **more,
    }


def _opt(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["OPTForCausalLM"],
        "hidden_size": hidden,
        "ffn_dim": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "dtype": "float16",
    }


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_QWEN3: dict[str, Any] = {"architecture": "Qwen3ForCausalLM", "head_dim": 128}

_SHAPES: dict[str, dict[str, Any]] = {
    "opt-125m": _opt(768, 3072, 12, 12),
    "opt-1.3b": _opt(2048, 8192, 24, 32),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, 8192, **_TIED),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, 49152, 8192, **_TIED),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49152, 8192, **_TIED),
    "qwen3-0.6b": _llama(1024, 3072, 28, 16, 8, 151936, 40960, **_QWEN3, **_TIED),
    "qwen3-8b": _llama(4096, 12288, 36, 32, 8, 151936, 40960, **_QWEN3),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, 131072, **_TIED),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, 4096, dtype="float16"),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256, 131072),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256, 131072),
    "mistral-7b-v0.3": _llama(
        4096, 14336, 32, 32, 8, 32768, 32768, architecture="MistralForCausalLM"
    ),
}
