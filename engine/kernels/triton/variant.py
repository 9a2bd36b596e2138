"""Describe one compilation of a kernel, and the dtypes that compilations are made in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FP8 = {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}  # of the cache only


@dataclass(frozen=True)
class Variant:
    """Describe one compilation.

    `types` and `constants` together name every parameter of the kernel.
    """

    name: str  # unique: "attention decode bf16 d128"
    kernel: Any  # what triton.jit made
    types: dict[str, str]  # of run-time parameters: "*bf16", "i32", "fp32"
    constants: dict[str, int]
    num_warps: int
    num_stages: int
    has_dot: bool = False
    since: int = 80  # compute capability that has what it needs
    tensor_cores: bool = False  # fp32 products don't use them
