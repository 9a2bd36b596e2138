"""Write a checkpoint of the Llama or Qwen3 shape as a GGUF file, for llama.cpp.

    PYTHONPATH=…/gguf-py python -m benchmarks.peers.convert MODEL FILE.gguf --dtype bfloat16

The weights don't change: in bfloat16 the matrices are copied bit by bit, in float32 all is float32.
The file is written by llama.cpp's own `gguf` package, which its sources carry. Names and keys:
docs/gguf.md of ggml, and llama.cpp's `gguf.constants`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class NotConvertible(ValueError):
    """Report that llama.cpp has no such architecture, or this converter doesn't know it."""


def gguf_name(name: str) -> str:
    """Return `blk.3.ffn_up.weight` for `model.layers.3.mlp.up_proj.weight`.

    Raises `NotConvertible`.
    """
    stem, kind = name.rsplit(".", 1)
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    prefix, part = (f"blk.{layer[1]}.", layer[2]) if layer else ("", stem)
    if part not in NAMES:
        raise NotConvertible(f"the tensor {name} has no name in a GGUF file")
    return f"{prefix}{NAMES[part]}.{kind}"


def interleave_rope(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder rows of W_q or W_k for llama.cpp's `llama` architecture.

    It rotates neighbouring pairs (0, 1), (2, 3), …; transformers rotates (0, d/2), (1, d/2 + 1), …

    `weight`: [heads · head_dim, inputs]
    """
    rows, inputs = weight.shape
    halves = weight.reshape(num_heads, 2, rows // num_heads // 2, inputs)
    return halves.transpose(1, 2).reshape(rows, inputs).contiguous()


def tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the checkpoint's tensors under GGUF's names and in its order of rows."""
    llama = architecture(config) == "llama"
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue  # llama.cpp takes token_embd for it
                tensor, new_name = file.get_tensor(name), gguf_name(name)
                part = new_name.split(".")[-2]
                if llama and part in heads:
                    tensor = interleave_rope(tensor, heads[part])
                yield new_name, tensor


def architecture(config: dict[str, Any]) -> str:
    """Return llama.cpp's name for the architecture. Raises `NotConvertible`."""
    name = config["architectures"][0]
    if name not in ARCHITECTURES:
        raise NotConvertible(f"{name} is not converted: {', '.join(ARCHITECTURES)} are")
    return ARCHITECTURES[name]


def convert(folder: Path, target: Path, dtype: str) -> None:
    """Write `target`. Raises `NotConvertible`."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, architecture(config))
    half = dtype == "bfloat16"
    _write_keys(writer, config)
    _write_vocabulary(writer, folder, config)
    file_type = gguf.LlamaFileType
    writer.add_file_type(file_type.MOSTLY_BF16 if half else file_type.ALL_F32)
    for name, tensor in tensors(folder, config):
        if half and tensor.dim() > 1:  # vectors (norms) are float32 in every GGUF file
            bits = tensor.to(torch.bfloat16).view(torch.uint8).numpy()
            writer.add_tensor(name, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise NotConvertible(f"rope of type {rope['rope_type']} is not converted")
    writer.add_name("benchmark")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _write_vocabulary(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Write the byte-level BPE of tokenizer.json.

    The requests carry token ids, so only the texts of the answers depend on it.
    """
    import gguf

    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = described["model"]
    texts = {number: text for text, number in model["vocab"].items()}
    special = set()
    for added in described["added_tokens"]:
        texts[added["id"]] = added["content"]
        special.add(added["id"])
    size = config["vocab_size"]
    kinds = [
        gguf.TokenType.CONTROL
        if number in special
        else gguf.TokenType.NORMAL
        if number in texts
        else gguf.TokenType.UNUSED
        for number in range(size)
    ]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([texts.get(number, f"[unused {number}]") for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    end = config.get("eos_token_id")
    if end is not None:
        writer.add_eos_token_id(end[0] if isinstance(end, list) else end)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    given = parser.parse_args()
    convert(given.model, given.target, given.dtype)


if __name__ == "__main__":
    main()
