"""Step 2. Find a token's place in the cache.

The keys and values of a sequence lie in blocks of `block_size` tokens. The blocks may lie anywhere:
the sequence's table lists them in order. A token's slot is its place in the whole cache: block 0
has the slots 0 … block_size − 1, block 1 the next ones. Begin with `slot_mapping` in
engine/worker/step_inputs.py.
"""

from __future__ import annotations


def slots(table: list[int], block_size: int, start: int, num_tokens: int) -> list[int]:
    """Return the slots of the tokens at positions start … start + num_tokens − 1."""
    raise NotImplementedError


def blocks_to_add(num_tokens: int, more: int, block_size: int) -> int:
    """Return how many blocks a sequence of `num_tokens` tokens needs for `more` tokens."""
    raise NotImplementedError
