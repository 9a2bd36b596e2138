"""Cut proposals to what there is room for: in a step, in their sequence, in the pool of blocks.

Some are certain. Tokens that a grammar forces are drawn in any case, and each takes a row, in this
step or in a later one; all in this step save the others. So whether they pay is no question, as it
is for the proposals of a proposer (`speculator.py`), only how long the others wait.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.config.speculative import PROPOSED
from engine.core.kv_manager import KVManager
from engine.core.request import Request

TILE = 16
"""Tokens that a CPU's or a GPU's matrix units multiply at once."""


def most_proposals(request: Request, most: int) -> int:
    """Return for how many proposals a sequence has room: one more token is drawn behind them."""
    return min(most, request.most_tokens - request.num_tokens - 1)


def until_end(request: Request, token_ids: list[int]) -> list[int]:
    """Cut proposals before one that would end the sequence."""
    for place, token in enumerate(token_ids):
        if token in request.end_ids:
            return token_ids[:place]
    return token_ids


def most_forced(num_rows: int, num_tokens: int) -> int:
    """Return how many forced tokens may join a step of so many rows and tokens.

    They fill the last tile, where they cost little. With one tile more, a step of 16 rows took 1.4
    times as long, for 1.2 to 1.4 times the tokens: the others would wait for that. Nor do they more
    than double the rows, from eight on.
    """
    return min(max(PROPOSED, num_rows), -num_tokens % TILE)


def forced_proposals(
    decoding: Iterable[Request], most: int, room: int
) -> list[tuple[Request, list[int]]]:
    """Return the tokens that grammars force next. most: for each sequence; room: for all."""
    found = []
    for request in decoding:
        if request.forced_tokens and room > 0:
            count = most_proposals(request, min(most, room))
            token_ids = until_end(request, request.forced_tokens[: max(0, count)])
            if token_ids:
                room -= len(token_ids)
                found.append((request, token_ids))
    return found


def that_fit(
    kv: KVManager, found: list[tuple[Request, list[int]]]
) -> list[tuple[Request, list[int]]]:
    """Cut proposals for which no block is free; they never take one from a sequence."""
    free = kv.pool.num_free
    if sum(len(token_ids) for _, token_ids in found) <= free:
        return [one for one in found if one[1]]  # as none takes more blocks than it has tokens
    chosen = []
    for request, token_ids in found:
        count = len(token_ids)
        if kv.blocks_to_grow(request, count) > free:
            slots = (len(request.block_table) + free) * kv.block_size
            count = slots - request.num_planned_tokens
        if count:
            free -= kv.blocks_to_grow(request, count)
            chosen.append((request, token_ids[:count]))
    return chosen
