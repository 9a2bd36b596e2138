"""Write a model as one GGUF file: key-values, tokenizer, and tensors in blocks of 32."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.models.errors import ModelError
from engine.models.formats.gguf_cuts import CUTS, steps
from engine.models.formats.gguf_files import MAGIC
from engine.models.formats.gguf_model import KINDS, Architecture, Tensor, tensors_of
from engine.models.formats.gguf_tokenizer import CONTROL
from engine.quantize.format_names import GGUF
from engine.quantize.weight_rounding import Grid, Rounded, round_to_nearest
from engine.rounding import ceil_div

BLOCK = 32
ALIGNMENT = 32
F32, Q4_0, Q8_0 = 0, 2, 8
NORMAL = 1


class BlockType(NamedTuple):
    """Describe a type that is written."""

    number: int
    bits: int
    write: Callable[[Rounded], np.ndarray]  # → uint8 [N, bytes of a row]


def _scales(rounded: Rounded) -> np.ndarray:
    """Return each block's scale as bytes: uint8 [blocks, 2]."""
    return rounded.scales.half().contiguous().numpy().view(np.uint8).reshape(-1, 2)


def _q4_0(rounded: Rounded) -> np.ndarray:
    codes = rounded.codes.numpy().reshape(-1, BLOCK)
    packed = codes[:, :16] | codes[:, 16:] << 4
    return np.concatenate((_scales(rounded), packed), 1).reshape(len(rounded.codes), -1)


def _q8_0(rounded: Rounded) -> np.ndarray:
    codes = rounded.codes.numpy().reshape(-1, BLOCK) ^ 128
    return np.concatenate((_scales(rounded), codes), 1).reshape(len(rounded.codes), -1)


TYPES = {
    "q4_0": BlockType(Q4_0, GGUF["q4_0"], _q4_0),
    "q8_0": BlockType(Q8_0, GGUF["q8_0"], _q8_0),
}


class GGUFFile:
    """Gather a model's tensors, and write them."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """Read what the model says. Raises `ModelError` where a GGUF file can't say it."""
        kinds = [kind for kind in KINDS.values() if kind.architecture == _architecture(config)]
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not kinds or rope.get("rope_type", "default") != "default":
            raise ModelError(
                f"a GGUF file of {config['architectures'][0]} isn't written here, or not with its"
                " scaled rotary positions."
            )
        heads = config["num_attention_heads"]
        theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        self.config = {
            **config,
            "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
            "num_key_value_heads": config.get("num_key_value_heads") or heads,
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        }
        self._tensors = tensors_of(self.config)
        self._by_name = {tensor.called: name for name, tensor in self._tensors.items()}
        self._metadata = _sizes(kinds[0], self.config, theta) | _tokenizer(folder)
        self._data: dict[str, tuple[int, np.ndarray]] = {}

    def add(self, called: str, rounded: Rounded, kind: BlockType) -> None:
        """Take a rounded matrix by transformers' name."""
        name, tensor = self._find(called)
        if tensor.heads:
            order = torch.from_numpy(
                _pairs(np.arange(tensor.shape[0])[:, None], tensor.heads)[:, 0]
            )
            rounded = Rounded(*(part[order] for part in rounded))
        self._data[name] = kind.number, kind.write(rounded)

    def add_plain(self, called: str, numbers: torch.Tensor) -> None:
        """Take anything else: tables as Q8_0 where their rows are whole blocks, the rest as F32."""
        if called not in self._by_name:
            return  # a head that is tied
        name, tensor = self._find(called)
        if numbers.dim() == 2 and numbers.shape[1] % BLOCK == 0:
            rounded = round_to_nearest(numbers, Grid(8, BLOCK, symmetric=True))
            self._data[name] = Q8_0, _q8_0(rounded)
            return
        plain = numbers.float().numpy()
        if tensor.heads:
            plain = _pairs(plain, tensor.heads)
        self._data[name] = F32, np.ascontiguousarray(plain)

    def _find(self, called: str) -> tuple[str, Tensor]:
        name = self._by_name[called]
        return name, self._tensors[name]

    def write(self, path: Path) -> None:
        """Write the file. Raises `ModelError` where a tensor is missing."""
        missing = self._tensors.keys() - self._data.keys()
        if missing:
            raise ModelError(f"the model has no {self._tensors[min(missing)].called}.")
        head = MAGIC + struct.pack("<IQQ", 3, len(self._data), len(self._metadata))
        for key, value in self._metadata.items():
            head += _string(key) + _value(value)
        at = 0
        for name, (number, data) in self._data.items():
            shape = self._tensors[name].shape[::-1]
            head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            head += struct.pack("<IQ", number, at)
            at += ceil_div(data.nbytes, ALIGNMENT) * ALIGNMENT
        with path.open("wb") as file:
            file.write(head + b"\0" * (-len(head) % ALIGNMENT))
            for _, data in self._data.values():
                file.write(data.tobytes() + b"\0" * (-data.nbytes % ALIGNMENT))


def _pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Put the halves of each head side by side, which `gguf_model.halves` undoes."""
    parted = rows.reshape(heads, 2, -1, rows.shape[-1])
    return np.ascontiguousarray(parted.swapaxes(1, 2)).reshape(rows.shape)


def _architecture(config: dict[str, Any]) -> str:
    name = (config.get("architectures") or [""])[0]
    return "LlamaForCausalLM" if name == "MistralForCausalLM" else name


def _sizes(kind: Architecture, config: dict[str, Any], theta: float) -> dict[str, Any]:
    arch = next(name for name, one in KINDS.items() if one is kind)
    said = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(theta),
        "rope.dimension_count": config["head_dim"],
    }
    if config.get("sliding_window") and config["model_type"] == "mistral":
        said["attention.sliding_window"] = config["sliding_window"]
    named = {"general.architecture": arch, "general.alignment": ALIGNMENT}
    return named | {f"{arch}.{key}": value for key, value in said.items()}


def _tokenizer(folder: Path) -> dict[str, Any]:
    """Return the key-values that describe the tokenizer in a folder."""
    try:
        said = json.loads((folder / "tokenizer.json").read_text())
        config = json.loads((folder / "tokenizer_config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no tokenizer that a GGUF file can hold: {error}") from None
    model, cut = said["model"], said["pre_tokenizer"]
    words = [word for word, of in CUTS.items() if _same_cut(cut, word, steps(of.rules, True))]
    if model.get("type") != "BPE" or not words:
        raise ModelError("the model's tokenizer is none that a GGUF file written here can name.")
    added = {token["id"]: token for token in said["added_tokens"]}
    tokens = {place: token for token, place in model["vocab"].items()}
    tokens |= {place: token["content"] for place, token in added.items()}
    listed = [tokens.get(place, f"<unused {place}>") for place in range(max(tokens) + 1)]
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": words[0],
        "tokenizer.ggml.tokens": listed,
        "tokenizer.ggml.token_type": [
            CONTROL if place in added else NORMAL for place in range(len(listed))
        ],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.add_bos_token": (said.get("post_processor") or {}).get("type")
        == "TemplateProcessing",
    }
    for role, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in listed:
            found[f"tokenizer.ggml.{key}_token_id"] = listed.index(token)
    template = config.get("chat_template")
    beside = folder / "chat_template.jinja"
    template = beside.read_text() if beside.is_file() else template
    if isinstance(template, str):
        found["tokenizer.chat_template"] = template
    return found


def _same_cut(cut: dict[str, Any], word: str, known: dict[str, Any]) -> bool:
    """Return whether a pre-tokenizer cuts as a word of GGUF says."""
    parts = cut.get("pretokenizers", [cut])
    if cut == known:
        return True
    kinds = [part["type"] for part in parts]
    short = {"gpt-2": ["ByteLevel"], "smollm": ["Digits", "ByteLevel"]}
    return kinds == short.get(word) and bool(parts[-1].get("use_regex", True))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(of: Any) -> bytes:
    """Return type and value: bool, u32, f32, string, or an array of strings or i32."""
    if isinstance(of, bool):
        return struct.pack("<I?", 7, of)
    if isinstance(of, int):
        return struct.pack("<II", 4, of)
    if isinstance(of, float):
        return struct.pack("<If", 6, of)
    if isinstance(of, str):
        return struct.pack("<I", 8) + _string(of)
    if of and isinstance(of[0], int):
        return struct.pack(f"<IIQ{len(of)}i", 9, 5, len(of), *of)
    return struct.pack("<IIQ", 9, 8, len(of)) + b"".join(_string(one) for one in of)
