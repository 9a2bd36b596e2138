"""One solution of step 4."""

from __future__ import annotations

from engine.trace.events import Event, StepPlanned
from engine.trace.replay import Replay


def waste(events: list[Event]) -> float:
    replay, slots, filled = Replay(), 0, 0
    for event in events:
        replay.fold(event)
        if not isinstance(event, StepPlanned):
            continue
        state = replay.state
        size = state.block_size
        tokens: dict[int, int] = {}  # block → tokens in it
        for name, table in state.tables.items():
            computed = state.sequences[name].num_computed_tokens
            for index, block in enumerate(table):
                inside = min(size, max(0, computed - index * size))
                tokens[block] = max(inside, tokens.get(block, 0))
        slots += size * len(tokens)
        filled += sum(tokens.values())
    return 1 - filled / slots if slots else 0.0
