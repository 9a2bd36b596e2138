"""List the formats: how a table names each, whose tool makes its checkpoints."""

from __future__ import annotations

from typing import NamedTuple

AUTO_ROUND, COMPRESSOR, LLAMA, OURS = "auto-round", "llm-compressor", "llama.cpp", "the engine"


class Form(NamedTuple):
    says: str
    tool: str
    same_as: str = ""  # the format whose checkpoint it is, served with activations in 8 bits


def _gguf(kind: str) -> Form:
    return Form(f"GGUF {kind}, by llama-quantize", LLAMA)


MADE = {
    "gptq": Form("GPTQ, 4 bits, by auto-round", AUTO_ROUND),
    "awq": Form("AWQ, 4 bits, by auto-round", AUTO_ROUND),
    "w4a16": Form("compressed-tensors W4A16, by auto-round", AUTO_ROUND),
    "nf4": Form("bitsandbytes nf4", AUTO_ROUND),
    "nf4-nested": Form("bitsandbytes nf4, nested scales", AUTO_ROUND),
    "fp4": Form("bitsandbytes fp4", AUTO_ROUND),
    "int8": Form("bitsandbytes int8", AUTO_ROUND),
    "w8a8": Form("compressed-tensors W8A8, by llm-compressor", COMPRESSOR),
    "fp8": Form("compressed-tensors FP8, by llm-compressor", COMPRESSOR),
    "fp8-block": Form("compressed-tensors FP8 in blocks, by llm-compressor", COMPRESSOR),
    "squeezellm": Form("SqueezeLLM, 4 bits, by `squeezellm.py`", OURS),
    "squeezellm-sparse": Form("SqueezeLLM with outliers, by `squeezellm.py`", OURS),
    **{
        kind.lower(): _gguf(kind)
        for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K")
    },
}
ROUNDED = ("w4a16", "w8a8", "q4_0", "q4_1", "q8_0")
"""Those that are also measured with --quantized-activations."""
FORMS = MADE | {
    f"{name}-int8": Form(f"{MADE[name].says}, int8 activations", MADE[name].tool, name)
    for name in ROUNDED
}
