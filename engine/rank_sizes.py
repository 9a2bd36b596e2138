"""Compute what one of several ranks holds of a model that is divided (tensor parallel).

Whole numbers only: the divided layers, the check of a model's sizes, and `engine.fit`, which needs
no torch, all take them from here.
"""

from __future__ import annotations

from engine.rounding import ceil_div

FLAG = "--tensor-parallel-size"
PLAIN_ONLY = (
    f"{FLAG} divides plain weights only, and this checkpoint's are quantized. Leave it out, or"
    " expand them when loading (--quantization none)."
)
NEVER_RUN = (
    f"{FLAG} on CUDA was tested by two processes on a CPU only: it has never run on several GPUs"
)
MOST_RANKS = 8  # in ranks.cpp
WIDEST = 1 << 16  # numbers of a row that is summed; PIECE in ranks.cpp
ROWS = 64
"""A share of the vocabulary has a multiple of this many rows, as the kernels' layouts want."""


def wrong_shares(heads: int, kv_heads: int, columns: int, size: int) -> list[str]:
    """List what `size` ranks can't divide evenly; nothing if each gets whole heads.

    columns: of the feed-forward.
    """
    wrong = []
    if heads % size:
        wrong.append(f"{heads} query heads")
    if kv_heads % size and size % kv_heads:
        wrong.append(f"{kv_heads} key and value heads")
    if columns % size:
        wrong.append(f"{columns} columns of its feed-forward")
    return wrong


def copies_of_a_head(kv_heads: int, size: int) -> int:
    """Return how many ranks have the same key and value head."""
    return max(1, size // kv_heads)


def tokens_of_a_rank(vocabulary: int, size: int) -> int:
    """Return how many tokens of the vocabulary are a rank's; the last rank may have fewer."""
    return ceil_div(vocabulary, size)


def rows_of_a_rank(vocabulary: int, size: int) -> int:
    """Return the rows of a rank's share of the embedding, or of the head.

    At least one more than it has tokens: it stays zeros, for the tokens of other ranks.
    """
    return ceil_div(tokens_of_a_rank(vocabulary, size) + 1, ROWS) * ROWS
