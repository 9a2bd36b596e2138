"""Check the sizes that config.json states, before anything is made of that size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 2**16,
    "hidden_size": 2**20,
    "intermediate_size": 2**24,
    "vocab_size": 2**24,
}
"""More than any model has, by the names of config.json."""


def wrong_size(size_of: Callable[[str], Any]) -> str:
    """Say which size no model can have; "" where all are possible.

    size_of: what config.json says under a name, None where it says nothing. Lists (a size for each
    layer) are not judged here: their reader does.
    """
    for name, most in MOST.items():
        size = size_of(name)
        if size is None or isinstance(size, list | tuple):
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= most:
            shown = f"{size:,}" if type(size) is int else repr(size)[:40]
            return f"{name} {shown}; it must be 1 to {most:,}"
    return ""
