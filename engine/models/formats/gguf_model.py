"""Describe the model in a GGUF file in transformers' words: config.json, and each tensor's name.

Read are the architectures below. Files of architecture "llama" hold Llama, Mistral, SmolLM and
their like, and llama.cpp's converter has changed the order of rows of q and k in them: it rotates
neighbouring dimensions of a head, transformers dimension i with i + D/2. `halves` undoes that.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from engine.models.errors import ModelError
from engine.models.formats.gguf import TensorInfo

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
NORMS_OF_HEADS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's: what divides each of a head's frequencies."""


class Architecture(NamedTuple):
    """Describe one architecture."""

    architecture: str  # as transformers names it
    model_type: str
    paired: bool  # the converter has changed the order of rows of q and k
    qkv_bias: bool = False
    head_norms: bool = False


KINDS = {
    "llama": Architecture("LlamaForCausalLM", "llama", True),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", False, qkv_bias=True),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3", False, head_norms=True),
}
"""By `general.architecture`."""

LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
LLAMA3_LENGTH = 8192
LLAMA3_FACTORS = (8.0, 32.0)


class Tensor(NamedTuple):
    """Say what one tensor of the file is."""

    called: str  # by transformers
    shape: tuple[int, ...]
    heads: int = 0  # whose rows `halves` must separate; 0: none


def describe(
    metadata: dict[str, Any], tensors: dict[str, TensorInfo], factors: np.ndarray | None
) -> dict[str, Any]:
    """Make config.json. factors: the numbers of `ROPE_FACTORS`, where the file has them.

    Raises `ModelError` where the model is of another kind, or its sizes are not sound.
    """
    architecture = metadata.get("general.architecture")
    kind = KINDS.get(architecture) if isinstance(architecture, str) else None
    if kind is None or metadata.get("general.type", "model") != "model":
        what = metadata.get("general.type", "model")
        raise ModelError(
            f"the GGUF file holds a {what} of architecture {architecture!r}; served are models of"
            f" {', '.join(KINDS)}."
        )

    def number(key: str, kind: type = int, default: float | None = None) -> Any:
        value: Any = metadata.get(f"{architecture}.{key}", default)
        if type(value) not in (kind, int) or not 0 < value < math.inf:
            raise ModelError(
                f"the GGUF file's {architecture}.{key} is {value!r}; a number above 0 is due."
            )
        return value

    def short(key: str, default: float | None = None) -> float:
        """Return the decimal that a number of 32 bits was rounded from."""
        value = number(key, float, default)
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(str(np.float32(value)))
        if not 0 < rounded < math.inf:
            raise ModelError(
                f"the GGUF file's {architecture}.{key} is {value!r}, which has no place in 32 bits."
            )
        return rounded

    heads, hidden = number("attention.head_count"), number("embedding_length")
    head_dim = number("attention.key_length", default=max(1, hidden // heads))
    positions = number("context_length")
    tokens = metadata.get("tokenizer.ggml.tokens")
    theta = short("rope.freq_base", 10000.0)
    config = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": short("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "vocab_size": len(tokens) if isinstance(tokens, list) else 0,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if config["num_hidden_layers"] > len(tensors):
        raise ModelError("the GGUF file claims more layers than it has tensors.")
    if number("rope.dimension_count", default=head_dim) != head_dim or head_dim % 2:
        raise ModelError("the GGUF file turns only part of a head; whole heads are served.")
    if number("attention.value_length", default=head_dim) != head_dim:
        raise ModelError("the GGUF file has values of another length than keys.")
    window = metadata.get(f"{architecture}.attention.sliding_window")
    if window and kind.model_type == "llama":
        config |= {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": number("attention.sliding_window"),
        }
    scaling = _rope_scaling(metadata, f"{architecture}.rope.scaling.", positions)
    if factors is not None:
        scaling = _llama3(factors, head_dim, theta)
    if scaling:
        config["rope_scaling"] = scaling
    for name, key in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None:
            config[f"{name}_token_id"] = token
    return config


def _rope_scaling(metadata: dict[str, Any], prefix: str, positions: int) -> dict[str, Any] | None:
    """Return transformers' rope_scaling of a file's keys, None where it scales nothing."""
    said = {key.removeprefix(prefix): of for key, of in metadata.items() if key.startswith(prefix)}
    kind = said.pop("type", "none")
    if kind in ("none", "default"):
        return None
    factor, original = said.pop("factor", None), said.pop("original_context_length", None)
    said = {key: of for key, of in said.items() if key != "finetuned"}
    sound = isinstance(factor, int | float) and 0 < factor < math.inf > positions / factor
    if kind not in ("linear", "yarn") or said or not sound:
        raise ModelError(
            f"the GGUF file's {prefix}type is {kind!r} with {sorted(said) or f'factor {factor!r}'};"
            " served are linear and yarn with a factor only."
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    length = original if isinstance(original, int) and original > 0 else int(positions / factor)
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": length,
    }


def _llama3(factors: np.ndarray, head_dim: int, theta: float) -> dict[str, Any]:
    """Find the parameters of Llama 3's scaling that give a file's factors.

    The file has the result only. Raises `ModelError` where no known parameters give it.
    """
    unknown = ModelError(
        f"the GGUF file's {ROPE_FACTORS} is none of Llama 3's scalings by"
        f" {' or '.join(f'{factor:g}' for factor in LLAMA3_FACTORS)}."
    )
    if factors.shape != (head_dim // 2,):  # before anything is made of a length that it claims
        raise unknown
    frequencies = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    lengths = 2 * math.pi / frequencies
    low, high = LLAMA3_LOW, LLAMA3_HIGH
    for factor in LLAMA3_FACTORS:
        smooth = (LLAMA3_LENGTH / lengths - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        wanted = np.where(lengths < LLAMA3_LENGTH / high, 1.0, between)
        wanted = np.where(lengths > LLAMA3_LENGTH / low, factor, wanted)
        if np.allclose(factors, wanted, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "low_freq_factor": low,
                "high_freq_factor": high,
                "factor": factor,
                "original_max_position_embeddings": LLAMA3_LENGTH,
            }
    raise unknown


def checked_tensors(
    path: Any, tensors: dict[str, TensorInfo], config: dict[str, Any]
) -> dict[str, Tensor]:
    """Return what each tensor is, by its name in the file.

    Raises `ModelError` unless the file has just the tensors that its sizes imply.
    """
    expected = tensors_of(config)
    odd = sorted(expected.keys() ^ (tensors.keys() - {ROPE_FACTORS}))
    if odd:
        raise ModelError(f"{path} lacks the tensor {odd[0]}, or has no use for it.")
    for name, tensor in expected.items():
        if tensors[name].shape != tensor.shape:
            raise ModelError(
                f"{path}: {name} has the shape {list(tensors[name].shape)}, its sizes say"
                f" {list(tensor.shape)}."
            )
    return expected


def tensors_of(config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that the sizes imply."""
    kind = next(kind for kind in KINDS.values() if kind.model_type == _family(config))
    hidden, inner, head_dim = (
        config[name] for name in ("hidden_size", "intermediate_size", "head_dim")
    )
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (heads * head_dim, hidden),
        "attn_k": (kv_heads * head_dim, hidden),
        "attn_v": (kv_heads * head_dim, hidden),
        "attn_output": (hidden, heads * head_dim),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    paired = {"attn_q": heads, "attn_k": kv_heads} if kind.paired else {}
    vocabulary = (config["vocab_size"], hidden)
    found = {
        name: Tensor(called, (hidden,) if "norm" in name else vocabulary)
        for name, called in OUTSIDE.items()
        if name != "output.weight" or not config["tie_word_embeddings"]
    }
    for layer in range(config["num_hidden_layers"]):
        ours = f"model.layers.{layer}"
        for name, called in IN_A_LAYER.items():
            tensor = Tensor(f"{ours}.{called}.weight", shapes[name], paired.get(name, 0))
            found[f"blk.{layer}.{name}.weight"] = tensor
        if kind.qkv_bias:
            for name in ("attn_q", "attn_k", "attn_v"):
                called = f"{ours}.{IN_A_LAYER[name]}.bias"
                found[f"blk.{layer}.{name}.bias"] = Tensor(called, shapes[name][:1])
        if kind.head_norms:
            for name, called in NORMS_OF_HEADS.items():
                found[f"blk.{layer}.{name}.weight"] = Tensor(f"{ours}.{called}.weight", (head_dim,))
    return found


def _family(config: dict[str, Any]) -> str:
    return "llama" if config["model_type"] == "mistral" else config["model_type"]


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Separate pairs: [heads · D, …], side by side → the first of each, then the second."""
    paired = rows.reshape(heads, -1, 2, rows.shape[-1])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(rows.shape)
