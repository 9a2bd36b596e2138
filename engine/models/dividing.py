"""Refuse models that can't be divided among the asked number of ranks, with the numbers.

Imports no torch: the sizes are checked before it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.models.errors import ModelError
from engine.models.registry import native_class
from engine.rank_sizes import FLAG, MOST_RANKS, WIDEST, wrong_shares

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_divides(config: PretrainedConfig, size: int) -> None:
    """Raise `ModelError` unless each of `size` ranks gets whole heads and as many columns."""
    if not getattr(native_class(config), "divides", False):
        raise not_divided((config.architectures or [config.model_type])[0], size)
    heads = config.num_attention_heads, config.num_key_value_heads
    check_shares(config.hidden_size, *heads, config.intermediate_size, size)


def not_divided(name: str, size: int) -> ModelError:
    """Make the error for an architecture that can't be divided."""
    return ModelError(
        f"{FLAG} is {size}, but {name} can't be divided in this version: only Llama, Mistral,"
        " Qwen2 and Qwen3 can, as engine/models/llama.py computes them. Leave it out."
    )


def check_shares(width: int, heads: int, kv_heads: int, columns: int, size: int) -> None:
    """Raise `ModelError` unless these sizes can be divided. width: the hidden size."""
    if width > WIDEST:
        raise ModelError(
            f"{FLAG} is {size}, but this model's hidden size is {width:,}, and ranks"
            f" add rows of at most {WIDEST:,} numbers. Leave it out."
        )
    sizes = heads, kv_heads, columns
    wrong = wrong_shares(*sizes, size)
    if wrong:
        fits = [n for n in range(1, MOST_RANKS + 1) if not wrong_shares(*sizes, n)]
        raise ModelError(
            f"{FLAG} is {size}, by which the {' and the '.join(wrong)} of this model can't be"
            f" divided; give {' or '.join(map(str, fits))}."
        )
