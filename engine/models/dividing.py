"""Refuse models that can't be divided among the asked number of ranks, with the numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.kernels.cpu.rank_ops import MOST_RANKS, WIDEST
from engine.layers.kinds import PLAIN, Layers
from engine.models.errors import ModelError
from engine.models.registry import native_class
from engine.rank_sizes import FLAG, PLAIN_ONLY, wrong_shares

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def check_divides(config: PretrainedConfig, size: int) -> None:
    """Raise `ModelError` unless each of `size` ranks gets whole heads and as many columns."""
    if not getattr(native_class(config), "divides", False):
        name = (config.architectures or [config.model_type])[0]
        raise ModelError(
            f"{FLAG} is {size}, but {name} can't be divided in this version: only Llama, Mistral,"
            " Qwen2 and Qwen3 can, as engine/models/llama.py computes them. Leave it out."
        )
    if config.hidden_size > WIDEST:
        raise ModelError(
            f"{FLAG} is {size}, but this model's hidden size is {config.hidden_size:,}, and ranks"
            f" add rows of at most {WIDEST:,} numbers. Leave it out."
        )
    sizes = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    wrong = wrong_shares(*sizes, size)
    if wrong:
        fits = [n for n in range(1, MOST_RANKS + 1) if not wrong_shares(*sizes, n)]
        raise ModelError(
            f"{FLAG} is {size}, by which the {' and the '.join(wrong)} of this model can't be"
            f" divided; give {' or '.join(map(str, fits))}."
        )


def refuse_quantized(layers: Layers) -> None:
    """Raise `ModelError` if a checkpoint needs layers that compute with codes."""
    if layers is not PLAIN:
        raise ModelError(PLAIN_ONLY)
