"""Make a quantized checkpoint with another's tool, and write what its own library reads from it.

    PYTHON maker.py make FORMAT SOURCE OUT        a checkpoint
    PYTHON maker.py read FORMAT OUT NUMBERS       each matrix as the library de-quantizes it

PYTHON is that of the tool's environment, where the engine isn't: this file imports nothing of it.
NUMBERS is a file of safetensors with the names that the matrices have in a plain checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

GROUP = 64  # SmolLM2's rows are no whole groups of 128
AUTO_ROUND = {"gptq": "auto_gptq", "awq": "auto_awq", "w4a16": "llm_compressor"}
BITSANDBYTES: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4-nested": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}
COMPRESSOR = {"w8a8": "W8A8", "fp8": "FP8_DYNAMIC", "fp8-block": "FP8_BLOCK"}
GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "q5_k_m", "q6_k")
Numbers = Iterator[tuple[str, torch.Tensor]]


def with_auto_round(name: str, source: str, out: str) -> None:
    from auto_round import AutoRound

    tool = AutoRound(
        source,
        scheme="W4A16",
        iters=0,
        group_size=GROUP,
        device_map="cpu",
        disable_opt_rtn=True,
    )
    tool.quantize_and_save(out, format=AUTO_ROUND[name])


def with_bitsandbytes(name: str, source: str, out: str) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=BitsAndBytesConfig(**BITSANDBYTES[name]),
        dtype=torch.bfloat16,
        device_map="cpu",
        trust_remote_code=False,
    )
    model.save_pretrained(out)  # before any forward pass, which lays the codes out anew


def with_compressor(name: str, source: str, out: str) -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16, trust_remote_code=False
    )
    recipe = QuantizationModifier(targets="Linear", scheme=COMPRESSOR[name], ignore=["lm_head"])
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(out, save_compressed=True)


def by_identity(name: str, out: str) -> Numbers:
    """Multiply identity by each layer as auto-round's class computes it, in its scales' dtype.

    A sum of one weight and zeros is the weight.
    """
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    model = AutoModelForCausalLM.from_pretrained(
        out,
        device_map="cpu",
        dtype=torch.float16,
        quantization_config=AutoRoundConfig(backend="auto_round:torch_zp"),
        trust_remote_code=False,
    )
    for layer_name, layer in model.named_modules():
        if hasattr(layer, "qweight"):
            eye = torch.eye(layer.infeatures)
            with torch.inference_mode():
                yield layer_name, layer(eye).t().to(layer.scales.dtype)


def by_unpacking(name: str, out: str) -> Numbers:
    """Call the function by which auto-round itself reads AWQ's words."""
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from safetensors.torch import load_file

    stored: dict[str, torch.Tensor] = {}
    for path in Path(out).glob("*.safetensors"):
        stored |= load_file(path)
    for qweight in (of for of in stored if of.endswith(".qweight")):
        layer = qweight.removesuffix(".qweight")
        parts = [stored[f"{layer}.{part}"] for part in ("qweight", "qzeros", "scales")]
        yield layer, dequantize_gemm(*parts, 4, GROUP).t()


def by_bitsandbytes(name: str, out: str) -> Numbers:
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        out, device_map="cpu", dtype=torch.bfloat16, trust_remote_code=False
    )
    for layer_name, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            state = layer.weight.quant_state
            yield layer_name, bnb.functional.dequantize_4bit(layer.weight.data, state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = layer.weight
            yield layer_name, bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB)


def by_gguf(name: str, out: str) -> Numbers:
    """Read with the package gguf, by way of transformers, which knows the names."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        out, gguf_file="model.gguf", dtype=torch.float32, trust_remote_code=False
    )
    for weight_name, weight in model.named_parameters():  # a tied head is there once
        if weight.dim() == 2:
            yield weight_name.removesuffix(".weight"), weight.data.clone()


def by_description(name: str, out: str) -> Numbers:
    """Read SqueezeLLM's tensors one place of a word after the other, as its paper lays them out."""
    from safetensors.torch import load_file

    stored = load_file(f"{out}/model.safetensors")
    for qweight in (of for of in stored if of.endswith(".qweight")):
        layer = qweight.removesuffix(".qweight")
        words, table = stored[qweight].t(), stored[f"{layer}.lookup_table"]
        codes = torch.stack([words >> (4 * place) & 15 for place in range(8)], -1).flatten(1)
        numbers = table.gather(1, codes.long())
        if f"{layer}.rows" in stored:
            starts = stored[f"{layer}.rows"].tolist()
            cols, values = stored[f"{layer}.cols"].long(), stored[f"{layer}.vals"]
            for row, (start, end) in enumerate(pairwise(starts)):
                numbers[row, cols[start:end]] += values[start:end]
        yield layer, numbers


def by_compressed_tensors(name: str, out: str) -> Numbers:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(
        out,
        quantization_config=CompressedTensorsConfig(run_compressed=False),
        dtype="auto",
        trust_remote_code=False,
    )
    for layer_name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".layers." in layer_name:
            yield layer_name, layer.weight.data


TOOLS: dict[str, Callable[[str, str, str], None]] = {
    **dict.fromkeys(AUTO_ROUND, with_auto_round),
    **dict.fromkeys(BITSANDBYTES, with_bitsandbytes),
    **dict.fromkeys(COMPRESSOR, with_compressor),
}
READERS: dict[str, Callable[[str, str], Numbers]] = {
    "gptq": by_identity,
    "awq": by_unpacking,
    **dict.fromkeys(BITSANDBYTES, by_bitsandbytes),
    **dict.fromkeys(("w4a16", *COMPRESSOR), by_compressed_tensors),
    **dict.fromkeys(("squeezellm", "squeezellm-sparse"), by_description),
    **dict.fromkeys(GGUF, by_gguf),
}


def main() -> None:
    what, name, source, target = sys.argv[1:]
    if what == "make":
        TOOLS[name](name, source, target)
        return
    from safetensors.torch import save_file

    numbers = {
        f"{layer}.weight": found.contiguous() for layer, found in READERS[name](name, source)
    }
    if not numbers:
        raise SystemExit(f"the library finds no quantized layer in {source}")
    save_file(numbers, Path(target), {"format": "pt"})


if __name__ == "__main__":
    main()
