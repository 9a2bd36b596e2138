"""One solution of step 5."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Sequence:
    name: str
    known: int
    computed: int = 0


def plan(
    running: list[Sequence],
    waiting: list[Sequence],
    budget: int,
    seats: int,
    free_blocks: int,
    block_size: int,
) -> list[tuple[str, int]]:
    rows = []
    for sequence in running:
        count = min(sequence.known - sequence.computed, budget)
        if count:
            rows.append((sequence.name, count))
            budget -= count
    seats -= len(running)
    for sequence in waiting:
        need = -(-sequence.known // block_size)
        if not budget or not seats or need > free_blocks:
            break
        count = min(sequence.known, budget)
        rows.append((sequence.name, count))
        budget, seats, free_blocks = budget - count, seats - 1, free_blocks - need
    return rows
