"""Triton kernels for CUDA: the same arguments, shapes and results as the plain-torch table.

`operations()` is all that others need: the entries of the `Kernels` table, or None where Triton
isn't installed, and then plain torch computes. Read `attention.py` first, it is most of the work;
`start.py` is how each is launched; `compile_all.py` compiles all of them for every GPU without one.

Matrix products of more than a few rows are cuBLAS's, through torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def operations() -> dict[str, Any] | None:
    """Name in the `Kernels` table → function (`few_rows`: several). What is missing is torch's."""
    if importlib.util.find_spec("triton") is None:
        return None
    found: dict[str, Any] = {}
    for module, names in {
        "paged_attention": ("paged_attention", "reads_lengths", "wants_lengths"),
        "rotary": ("qkv_attention", "write_kv"),
        "embed": ("embed",),
        "angles": ("angles",),
        "norm": ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"),
        "activation": ("silu_and_mul",),
        "linear": ("linear", "few_rows"),
        "draw": ("draw",),
        "take_drawn": ("take_drawn",),
        "exchange": ("take_inputs", "hand_out"),
        "greatest": ("greatest",),
        "blocks": ("copy_blocks",),
    }.items():
        loaded = importlib.import_module(f"engine.kernels.triton.{module}")
        found |= {name: getattr(loaded, name) for name in names}
    return found
