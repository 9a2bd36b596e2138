"""Step 5. Plan a step.

There are no phases: a step computes the tokens of each sequence that are known and not computed
yet, within a budget of tokens. At first these are the whole prompt, afterwards the one token that
was drawn last. What doesn't fit into the budget is a chunk now, and the rest later. Begin with
`Scheduler.schedule` in engine/core/scheduler.py; preemption is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sequence:
    name: str
    known: int  # tokens that exist: the prompt and what was drawn
    computed: int = 0  # tokens whose keys and values are in the cache


def plan(
    running: list[Sequence],
    waiting: list[Sequence],
    budget: int,
    seats: int,
    free_blocks: int,
    block_size: int,
) -> list[tuple[str, int]]:
    """Return the rows of the step: (name, tokens to compute), of at least one token each.

    1. The running sequences, in order: each gets what it lacks, as far as the budget goes.
    2. Then the waiting ones, in order, until the first that can't be admitted: it needs budget
       left, a free seat (`seats` in all, each running sequence has one), and free blocks for all of
       its known tokens, although the step may compute only a chunk of them.

    `free_blocks` are left after the running ones have taken theirs. Change nothing that you get.
    """
    raise NotImplementedError
