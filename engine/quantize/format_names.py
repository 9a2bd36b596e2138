"""Name the formats that are written, and the bits of their codes: what `--help` needs, no torch."""

from __future__ import annotations

SAFETENSORS = {"gptq": (4, 8), "awq-like": (4,), "w4a16": (4,), "int8": (8,)}
"""How many bits a code may have, the usual number first."""
GGUF = {"q4_0": 4, "q8_0": 8}
