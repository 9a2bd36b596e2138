"""How every Triton kernel of ours is started: through the door, with what it was compiled to.

In Triton's interpreter (`TRITON_INTERPRET=1`) a launch returns nothing, for there is no binary:
the record then has no registers and no shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from engine.kernels.launch import Cost, launch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that the kernels take; plain torch computes in others."""


def start(
    name: str,
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, int],
    num_warps: int,
    num_stages: int,
    cost: Callable[[], Cost],
) -> None:
    """Launch `kernel` on `grid`. cost: grid, bytes and flops, asked only when somebody records."""

    def run() -> Any:
        return kernel[grid](*arguments, **constants, num_warps=num_warps, num_stages=num_stages)

    def describe(compiled: Any) -> Cost:
        return cost()._replace(
            constexprs=constants,
            num_warps=num_warps,
            num_stages=num_stages,
            registers=getattr(compiled, "n_regs", None) or 0,
            shared_bytes=compiled.metadata.shared if compiled is not None else 0,
        )

    launch(name, "triton", run, (), describe)
