"""Hold what one launch of a kernel costs, as counted from its shapes."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Describe a launch, as counted from its shapes."""

    grid: list[int]  # number of pieces that the work was cut into
    num_bytes: int  # read and written
    flops: int
    flops_type: str = "float32"  # dtype of the products: "float32" or "bfloat16"
    why: str = ""  # why this grid, or this variant
    # Only compiled kernels have these:
    constexprs: dict[str, int] | None = None
    num_warps: int = 0
    num_stages: int = 0
    registers: int = 0  # of one thread
    shared_bytes: int = 0  # of one program
