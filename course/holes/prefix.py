"""Step 7. Find a prefix again.

Two prompts that begin alike need the keys and values of their common beginning once. A full block
gets a key made of its tokens and all tokens before them; a new prompt takes the blocks whose keys
are known already. Begin with `block_hash` in engine/core/block_pool.py.
"""

from __future__ import annotations

from collections.abc import Collection


def chain(tokens: list[int], block_size: int, salt: str = "") -> list[bytes]:
    """Return a key for each full block. Only what has the same salt has the same keys."""
    raise NotImplementedError


def found(tokens: list[int], block_size: int, known: Collection[bytes], salt: str = "") -> int:
    """Return how many tokens of this prompt needn't be computed, because their blocks are known.

    Only whole blocks from the beginning count, and never the prompt's last token.
    """
    raise NotImplementedError
