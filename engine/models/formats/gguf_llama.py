"""Convert a GGUF file of a Llama model to a folder in transformers' format, in bf16.

Imports no torch, because it runs before that is imported. Names change, and the rows of q and k:
llama.cpp rotates neighbouring dimensions of a head, transformers dimension i with i + D/2. Its
converter interleaved the halves, so here they are separated again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.models.errors import ModelError
from engine.models.formats.gguf import GGUF
from engine.models.formats.gguf_tokenizer import tokenizer_files

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_A_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(source: Path, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write config.json, the tokenizer and model.safetensors to `folder`.

    progress: called with (weights done, weights in all). Raises `ModelError`.
    """
    file = GGUF(source)
    try:
        config = _config(file.metadata, "output.weight" not in file.tensors)
        shapes = _checked_shapes(file, config)
        texts = tokenizer_files(file.metadata)
        generation = {k: config[k] for k in ("bos_token_id", "eos_token_id") if k in config}
        texts |= {"config.json": config, "generation_config.json": generation}
        for name, content in texts.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        heads = {
            "attn_q": config["num_attention_heads"],
            "attn_k": config["num_key_value_heads"],
        }
        total = sum(math.prod(shape) for _, shape in shapes.values())
        done = 0
        with (folder / "model.safetensors").open("wb") as to:
            to.write(_safetensors_header(shapes))
            for name in shapes:
                numbers = file.array(name)
                part = name.split(".")[-2]
                if part in heads:
                    numbers = _halves(numbers, heads[part])
                to.write(_to_bf16(numbers).tobytes())
                done += numbers.size
                progress(done, total)
    finally:
        file.close()


Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""Name in the file → (transformers' name, shape), of each tensor."""


def _checked_shapes(file: GGUF, config: dict[str, Any]) -> Shapes:
    """Return the shapes that the sizes imply.

    Raises `ModelError` unless the file has just these.
    """
    if config["num_hidden_layers"] > len(file.tensors):
        raise ModelError(f"{file.path} claims more layers than it has tensors.")
    shapes = _shapes(config)
    odd = sorted(shapes.keys() ^ file.tensors.keys())
    if odd:
        raise ModelError(f"{file.path} lacks the tensor {odd[0]}, or has no use for it.")
    for name, (_, shape) in shapes.items():
        if file.tensors[name].shape != shape:
            raise ModelError(
                f"{file.path}: {name} has the shape {list(file.tensors[name].shape)}, its sizes"
                f" say {list(shape)}."
            )
    return shapes


def _safetensors_header(shapes: Shapes) -> bytes:
    """Make the header; the numbers follow in the order of `shapes`, in bf16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for called, shape in shapes.values():
        start, end = end, end + 2 * math.prod(shape)
        header[called] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _config(metadata: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Make config.json from the file's key-values."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama" or metadata.get("general.type", "model") != "model":
        raise ModelError(f"the GGUF file holds {architecture!r}; converted are Llama models.")

    def number(key: str, kind: type = int, default: float | None = None) -> Any:
        value: Any = metadata.get(f"llama.{key}", default)
        if type(value) not in (kind, int) or not 0 < value < math.inf:
            raise ModelError(f"the GGUF file's llama.{key} is {value!r}; a number above 0 is due.")
        return value

    def short(key: str, default: float | None = None) -> float:
        """Return the decimal that a number of 32 bits was rounded from."""
        return float(str(np.float32(number(key, float, default))))

    for key in metadata:
        if key.startswith("llama.rope.scaling.") and metadata[key] not in ("none", "default"):
            raise ModelError(f"the GGUF file's {key} is {metadata[key]!r}; unscaled is converted.")
    heads, hidden = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", default=hidden // heads)
    tokens = metadata.get("tokenizer.ggml.tokens")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": head_dim,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": short("attention.layer_norm_rms_epsilon"),
        "rope_theta": short("rope.freq_base", 10000.0),
        "vocab_size": len(tokens) if isinstance(tokens, list) else 0,
        "tie_word_embeddings": tied,
    }
    if number("rope.dimension_count", default=head_dim) != head_dim or head_dim % 2:
        raise ModelError("the GGUF file turns only part of a head; whole heads are converted.")
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


def _shapes(config: dict[str, Any]) -> Shapes:
    """Return the shapes of the tensors that the sizes imply."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[f"num_{k}_heads"] * config["head_dim"] for k in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    vocabulary = (config["vocab_size"], hidden)
    found: Shapes = {
        name: (called, (hidden,) if "norm" in name else vocabulary)
        for name, called in OUTSIDE.items()
        if name != "output.weight" or not config["tie_word_embeddings"]
    }
    for layer in range(config["num_hidden_layers"]):
        for name, called in IN_A_LAYER.items():
            ours = f"model.layers.{layer}.{called}.weight"
            found[f"blk.{layer}.{name}.weight"] = (ours, shapes[name])
    return found


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Separate pairs: [heads · D, K], side by side → the first of each, then the second."""
    paired = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)


def _to_bf16(numbers: np.ndarray) -> np.ndarray:
    """Round fp32 to the bits of the nearest bf16, ties to even: uint16."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
