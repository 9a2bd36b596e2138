"""Compute a model's parameters, part by part, and KV cache from config.json alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from engine.config import POCKET_MODEL
from engine.fit.known import known_config
from engine.fit.quantized_bytes import MATRICES, Quantized, of_file, quantized
from engine.models.errors import ModelError
from engine.models.formats.gguf_folder import folder_of
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
    quantized: Quantized | None = None

    @property
    def parameters(self) -> int:
        return sum(part.numbers for part in self.parts)

    @property
    def in_matrices(self) -> int:
        """Return how many of the parameters are quantized, in a quantized checkpoint."""
        head = ("head",) if self.quantized is not None and self.quantized.head else ()
        return sum(part.numbers for part in self.parts if part.name in (*MATRICES, *head))

    @property
    def weight_bytes(self) -> int:
        size, quantized = BYTES[self.dtype], self.quantized
        if quantized is None:
            return self.parameters * size
        if quantized.in_all is not None:
            return quantized.in_all
        plain = (self.parameters - self.in_matrices) * size
        return plain + round(self.in_matrices * quantized.bits / 8)

    @property
    def kv_numbers_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim


def read_config(model: str) -> tuple[str, dict[str, Any]]:
    """Read (name, config.json) of a folder, of a well-known model, or of one on the hub."""
    folder = Path(POCKET_MODEL if model == "pocket" else model).expanduser()
    if folder.suffix.lower() == ".gguf":
        return _of_gguf(folder)
    if not folder.is_dir() and not model.startswith((".", "/", "~")):
        return model, known_config(model) or _from_hub(model)
    path = folder / "config.json"
    try:
        pocket = folder == Path(POCKET_MODEL)
        return "pocket" if pocket else folder.resolve().name, json.loads(path.read_text())
    except OSError:
        raise PlanError(f"{folder} has no config.json; name a model's folder or its id.") from None
    except ValueError:
        raise PlanError(f"{path} is not JSON; download it again.") from None


def _of_gguf(path: Path) -> tuple[str, dict[str, Any]]:
    """Read what a GGUF file says, in transformers' words, and what its weights take."""
    try:
        folder = folder_of(str(path))
        if folder is None:
            raise PlanError(f"{path} is not there; name a GGUF file.")
        return path.name, {
            **json.loads((Path(folder) / "config.json").read_text()),
            "quantization_config": of_file(path),
        }
    except ModelError as error:
        raise PlanError(str(error)) from None


def _from_hub(model: str) -> dict[str, Any]:
    """Read config.json of a model on the hub, and nothing else of it."""
    import httpx  # imported here: most plans need no network

    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = os.environ.get("HF_TOKEN")
    try:
        answer = httpx.get(
            f"{hub}/{model}/resolve/main/config.json",
            headers={"Authorization": f"Bearer {token}"} if token else None,
            follow_redirects=True,
            timeout=20,
        )
        answer.raise_for_status()
        return answer.json()
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        reason = {
            401: "it is private or gated, or there is no such model: check the name, set HF_TOKEN",
            403: "its terms are not accepted by the account of HF_TOKEN",
            404: "there is no such model",
        }.get(code, f"HTTP {code}")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        reason = f"{error}; check the network"
    raise PlanError(
        f"{model} is no folder and not in the table of well-known models, and {hub} does not give"
        f" its config.json: {reason}."
    )


def shape_of(name: str, config: dict[str, Any]) -> Shape:
    """Return the sizes that config.json states.

    Raises `PlanError` for unknown ones, and for a quantization that isn't served.
    """
    said = config.get("quantization_config")
    if said is not None:
        found = said if isinstance(said, Quantized) else quantized(said)
        if found is None:
            method = said.get("quant_method", "no method")
            raise PlanError(f"{name} is quantized by {method}, which the engine does not serve.")
        plain = {key: value for key, value in config.items() if key != "quantization_config"}
        if found.head:
            plain["tie_word_embeddings"] = False  # the embeddings stay beside it
        return replace(shape_of(name, plain), quantized=found)
    wrong = wrong_size(config.get)
    if wrong:
        raise PlanError(f"config.json of {name} says {wrong}.")
    architecture = (config.get("architectures") or [""])[0]
    try:
        if architecture == "OPTForCausalLM":
            return _opt_shape(name, architecture, config)
        if architecture in LLAMA_FAMILY:
            return _llama_shape(name, architecture, config)
    except KeyError as missing:
        raise PlanError(f"config.json of {name} does not say {missing}.") from None
    return _counted_shape(name, architecture, config)


LLAMA_FAMILY = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)


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
    vocab = config["vocab_size"]
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
            _head(vocab, hidden, bool(config.get("tie_word_embeddings", False))),
        ],
    )


def _opt_shape(name: str, architecture: str, config: dict[str, Any]) -> Shape:
    hidden, inner = config["hidden_size"], config["ffn_dim"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    vocab, width = config["vocab_size"], config.get("word_embed_proj_dim") or hidden
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
        _head(vocab, width, bool(config.get("tie_word_embeddings", True))),
    ]  # fmt: skip
    if width != hidden:
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
    )
