"""Declare the 8-bit float formats of the KV cache, for those who import torch and those who don't.

Micikevicius et al., "FP8 Formats for Deep Learning" (2022): e4m3 has three bits behind the point,
e5m2 two.
"""

from __future__ import annotations

from typing import NamedTuple


class Fp8Format(NamedTuple):
    """Describe an 8-bit float format."""

    torch_name: str
    largest: int
    since: tuple[int, int] | None  # compute capability whose GPUs convert it; None: all


# Triton converts e4m3 from Ada and Hopper on; e5m2 is the upper half of a float16, and any GPU can
# split one.
E4M3 = Fp8Format("float8_e4m3fn", 448, (8, 9))
E5M2 = Fp8Format("float8_e5m2", 57344, None)
FP8_FORMATS = {"fp8": E4M3, "fp8_e4m3": E4M3, "fp8_e5m2": E5M2}
"""By --kv-cache-dtype; plain "fp8" as vLLM has it."""
