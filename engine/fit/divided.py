"""Compute what one rank holds of a model that `--tensor-parallel-size` divides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.fit.shape import LLAMA_FAMILY, PlanError, Shape, shape_of
from engine.rank_sizes import FLAG, copies_of_a_head, rows_of_a_rank, wrong_shares


def share_of(name: str, config: dict[str, Any], size: int) -> Shape:
    """Return the sizes of the share that each of `size` ranks holds.

    It is a smaller model: fewer heads and columns, a part of the vocabulary, whole norms. Its
    `vocab` stays that of the whole, since rank 0 draws from all logits. Raises `PlanError` for a
    model that can't be divided so.
    """
    whole = shape_of(name, config)
    if whole.architecture not in LLAMA_FAMILY:
        raise PlanError(
            f"{FLAG} is {size}, but {whole.architecture} can't be divided: only"
            f" {', '.join(LLAMA_FAMILY)} can."
        )
    heads, columns = config["num_attention_heads"], config["intermediate_size"]
    kv_heads, head_dim = whole.kv_heads, whole.head_dim
    wrong = wrong_shares(heads, kv_heads, columns, size)
    if wrong:
        raise PlanError(
            f"{FLAG} is {size}, by which the {' and the '.join(wrong)} of {name} can't be divided."
        )
    _check_groups(whole, size, {"o": heads * head_dim // size, "down": columns // size})
    share = shape_of(
        name,
        {
            **config,
            "num_attention_heads": heads // size,
            "num_key_value_heads": kv_heads * copies_of_a_head(kv_heads, size) // size,
            "head_dim": head_dim,
            "intermediate_size": columns // size,
            "vocab_size": rows_of_a_rank(whole.vocab, size),
        },
    )
    return replace(share, vocab=whole.vocab, quantized=_quantized_share(whole, share))


def _check_groups(whole: Shape, size: int, inputs: dict[str, int]) -> None:
    """Raise `PlanError` if a rank would get a part of a group, whose scale is for all of it."""
    group = 1 if whole.quantized is None else whole.quantized.group
    for matrix, count in inputs.items():
        if count % group:
            raise PlanError(
                f"{FLAG} is {size}, so each rank has {count:,} inputs of {matrix}, which aren't"
                f" whole groups of {group}, as {whole.name} is quantized."
            )


def _quantized_share(whole: Shape, share: Shape) -> Any:
    """Say how the share is quantized. A file's bytes are divided as its numbers are."""
    quantized = whole.quantized
    if quantized is None or quantized.in_all is None:
        return quantized
    part = share.parameters / whole.parameters
    return quantized._replace(in_all=round(quantized.in_all * part))
