"""Compute a model's parameters, part by part, and KV cache from config.json alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from engine.fit.quantized_bytes import Quantized, Width, quantized
from engine.models.errors import ModelError
from engine.models.formats.targets import EMBEDDING, HEAD_LAYER, LINEAR
from engine.models.sizes import wrong_size
from engine.one_line import one_line

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class PlanError(Exception):
    """Report that no plan can be made; the message says why and what to do."""


class Part(NamedTuple):
    """Hold one line of the arithmetic: `times` × a product or sum that equals `numbers`."""

    name: str
    formula: str
    numbers: int


class Matrix(NamedTuple):
    """Name one matrix as transformers does, and say to which part of the arithmetic it belongs."""

    layer: str  # "model.layers.0.mlp.up_proj"
    part: str
    numbers: int
    classes: tuple[str, ...] = LINEAR


@dataclass(frozen=True)
class Shape:
    """Hold what config.json says about sizes."""

    name: str
    architecture: str
    dtype: str
    layers: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int  # the longest sequence, prompt and output
    parts: list[Part]  # of the parameters; they add up to the whole
    matrices: list[Matrix]  # of them, those that may be quantized
    quantized: Quantized | None = None

    @property
    def parameters(self) -> int:
        return sum(part.numbers for part in self.parts)

    @cached_property
    def in_codes(self) -> dict[Width, list[Matrix]]:
        """Return the matrices that are quantized, by what their weights take."""
        found: dict[Width, list[Matrix]] = {}
        if self.quantized is None:
            return found
        for matrix in self.matrices:
            width = self.quantized.width_of(matrix.layer, matrix.classes)
            if width is not None and matrix.numbers:
                found.setdefault(width, []).append(matrix)
        return found

    @property
    def weight_bytes(self) -> int:
        if self.quantized is not None and self.quantized.in_all is not None:
            return self.quantized.in_all
        plain, codes = self.parameters, 0
        for width, matrices in self.in_codes.items():
            count = sum(matrix.numbers for matrix in matrices)
            plain -= count
            codes += round(count * width.bits / 8)
        return plain * BYTES[self.dtype] + codes

    @property
    def kv_numbers_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim


def shape_of(name: str, config: dict[str, Any]) -> Shape:
    """Return the sizes that config.json states.

    Raises `PlanError` for unknown ones, and for a quantization that isn't served.
    """
    said = config.get("quantization_config")
    if said is not None:
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        return _quantized_shape(name, plain, said)
    wrong = wrong_size(config.get)
    if wrong:
        raise PlanError(f"config.json of {name} says {wrong}.")
    architecture = (config.get("architectures") or [""])[0]
    try:
        if architecture == OPT:
            return _opt_shape(name, architecture, config)
        if architecture in LLAMA_FAMILY:
            return _llama_shape(name, architecture, config)
    except KeyError as missing:
        raise PlanError(f"config.json of {name} does not say {missing}.") from None
    return _counted_shape(name, architecture, config)


def _quantized_shape(name: str, plain: dict[str, Any], said: Quantized | dict[str, Any]) -> Shape:
    """Return the sizes of a quantized model. plain: config.json without what is said of that."""
    architecture = (plain.get("architectures") or [""])[0]
    try:
        found = said if isinstance(said, Quantized) else quantized(said)
        if found is None:
            method = said.get("quant_method", "no method") if isinstance(said, dict) else ""
            raise PlanError(f"{name} is quantized by {method}, which the engine does not serve.")
        if architecture not in NATIVE:
            raise PlanError(
                f"{name} is quantized ({found.says}) and its architecture is none of"
                f" {', '.join(NATIVE)}: name the model's unquantized checkpoint."
            )
        if found.width_of(HEAD_LAYER, LINEAR) is not None:
            plain["tie_word_embeddings"] = False  # the embeddings stay beside it
        shape = replace(shape_of(name, plain), quantized=found)
        _ = shape.in_codes  # read now, to refuse what can't be
        return shape
    except ModelError as error:
        raise PlanError(str(error)) from None
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise PlanError(
            f"config.json of {name} says of its quantization what can't be read: {one_line(error)}."
        ) from None


LLAMA_FAMILY = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
OPT = "OPTForCausalLM"
NATIVE = (*LLAMA_FAMILY, OPT)
"""Architectures whose matrices the engine computes itself, quantized or not."""


def _dtype(config: dict[str, Any]) -> str:
    stored = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return stored if stored in BYTES else "float32"  # the engine uses the same then


def _llama_shape(name: str, architecture: str, config: dict[str, Any]) -> Shape:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    q, kv = heads * head_dim, kv_heads * head_dim
    bias = bool(config.get("attention_bias", False))
    qkv_bias = bias or architecture == "Qwen2ForCausalLM"
    attention = f"q, o: 2 × {hidden:,} × {q:,}; k, v: 2 × {hidden:,} × {kv:,}"
    attention_count = 2 * hidden * q + 2 * hidden * kv
    if qkv_bias or bias:
        biases = (q + 2 * kv) * qkv_bias + hidden * bias
        attention, attention_count = f"{attention}; biases {biases:,}", attention_count + biases
    norms, norm_count = f"2 × {hidden:,}", 2 * hidden
    if architecture == "Qwen3ForCausalLM":
        norms, norm_count = f"{norms} + 2 × {head_dim:,}", norm_count + 2 * head_dim
    forward, forward_count = f"3 × {hidden:,} × {inner:,}", 3 * hidden * inner
    if config.get("mlp_bias"):
        biases = 2 * inner + hidden
        forward, forward_count = f"{forward}; biases {biases:,}", forward_count + biases
    vocab, tied = config["vocab_size"], bool(config.get("tie_word_embeddings", False))
    return Shape(
        name,
        architecture,
        _dtype(config),
        layers,
        kv_heads,
        head_dim,
        vocab,
        config["max_position_embeddings"],
        [
            Part("embedding", f"{vocab:,} × {hidden:,}", vocab * hidden),
            Part("attention", f"{layers} layers × ({attention})", layers * attention_count),
            Part("feed-forward", f"{layers} layers × {forward}", layers * forward_count),
            Part(
                "norms", f"{layers} layers × ({norms}) + {hidden:,}", layers * norm_count + hidden
            ),
            _head(vocab, hidden, tied),
        ],
        [
            *_matrices(
                "model",
                layers,
                {
                    **{
                        f"self_attn.{one}": ("attention", q * hidden)
                        for one in ("q_proj", "o_proj")
                    },
                    **{
                        f"self_attn.{one}": ("attention", kv * hidden)
                        for one in ("k_proj", "v_proj")
                    },
                    **{
                        f"mlp.{one}": ("feed-forward", hidden * inner)
                        for one in ("gate_proj", "up_proj", "down_proj")
                    },
                },
            ),
            *_tables("model", vocab * hidden, tied),
        ],
    )


def _matrices(prefix: str, layers: int, each: dict[str, tuple[str, int]]) -> Iterator[Matrix]:
    """Name the matrices of all layers. each: of a layer, by its name: its part and numbers."""
    for layer in range(layers):
        for name, (part, numbers) in each.items():
            yield Matrix(f"{prefix}.layers.{layer}.{name}", part, numbers)


def _tables(prefix: str, numbers: int, tied: bool) -> Iterator[Matrix]:
    """Name the embeddings and the head, which has no numbers of its own if it is tied."""
    yield Matrix(f"{prefix}.embed_tokens", "embedding", numbers, EMBEDDING)
    yield Matrix(HEAD_LAYER, "head", 0 if tied else numbers)


def _opt_shape(name: str, architecture: str, config: dict[str, Any]) -> Shape:
    hidden, inner = config["hidden_size"], config["ffn_dim"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    vocab, width = config["vocab_size"], config.get("word_embed_proj_dim") or hidden
    tied = bool(config.get("tie_word_embeddings", True))
    rows = config["max_position_embeddings"] + 2  # OPT's positions start at 2
    bias, affine = (
        config.get("enable_bias", True),
        config.get("layer_norm_elementwise_affine", True),
    )
    attention = 4 * hidden * hidden + 4 * hidden * bias
    forward = 2 * hidden * inner + (inner + hidden) * bias
    last_norm = config.get("do_layer_norm_before", True) and not config.get(
        "_remove_final_layer_norm", False
    )
    norms = (layers * 4 * hidden + 2 * hidden * last_norm) * affine
    parts = [
        Part("embedding", f"{vocab:,} × {width:,}", vocab * width),
        Part("positions", f"{rows:,} × {hidden:,}", rows * hidden),
        Part("attention", f"{layers} layers × (4 × {hidden:,} × {hidden:,} + biases)",
             layers * attention),
        Part("feed-forward", f"{layers} layers × (2 × {hidden:,} × {inner:,} + biases)",
             layers * forward),
        Part("norms", f"{layers} layers × 4 × {hidden:,}, and the last", norms),
        _head(vocab, width, tied),
    ]  # fmt: skip
    attends = ("q_proj", "k_proj", "v_proj", "out_proj")
    matrices = [
        *_matrices(
            "model.decoder",
            layers,
            {
                **{f"self_attn.{one}": ("attention", hidden * hidden) for one in attends},
                **dict.fromkeys(("fc1", "fc2"), ("feed-forward", hidden * inner)),
            },
        ),
        *_tables("model.decoder", vocab * width, tied),
    ]
    if width != hidden:
        matrices += [
            Matrix(f"model.decoder.project_{one}", "projections", width * hidden)
            for one in ("in", "out")
        ]
        parts.insert(1, Part("projections", f"2 × {width:,} × {hidden:,}", 2 * width * hidden))
    return Shape(
        name,
        architecture,
        _dtype(config),
        layers,
        heads,
        hidden // heads,
        vocab,
        config["max_position_embeddings"],
        parts,
        matrices,
    )


def _head(vocab: int, width: int, tied: bool) -> Part:
    if tied:
        return Part("head", "the embedding again (tied)", 0)
    return Part("head", f"{vocab:,} × {width:,}", vocab * width)


def _counted_shape(name: str, architecture: str, config: dict[str, Any]) -> Shape:
    """Count any other architecture: transformers makes the model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        others = {key: value for key, value in config.items() if key != "model_type"}
        description = AutoConfig.for_model(config["model_type"], **others)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(description, trust_remote_code=False)
        text = description.get_text_config()
        heads = text.num_attention_heads
        kv_heads = getattr(text, "num_key_value_heads", None) or heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        positions = text.max_position_embeddings
    except Exception as error:  # unknown kinds, missing sizes: each model has its own errors
        reason = one_line(error)
        raise PlanError(f"transformers can't tell the sizes of {name}: {reason}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    return Shape(
        name,
        architecture or type(model).__name__,
        _dtype(config),
        text.num_hidden_layers,
        kv_heads,
        head_dim,
        text.vocab_size,
        positions,
        [Part("all weights", "as transformers makes the model", count)],
        [],
    )
