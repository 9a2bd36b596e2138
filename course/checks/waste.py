"""Check step 4: the share of slots that hold nothing, counted another way, slot by slot."""

from __future__ import annotations

from types import ModuleType

from course.checks.records import NAMES, record
from course.exercise import Wrong
from engine.trace.events import StepPlanned
from engine.trace.replay import Replay


def counted(name: str) -> float:
    """Return the waste of a record."""
    replay = Replay.of(record(name))
    used, filled = 0, 0
    for position, event in enumerate(list(replay.events)):
        if isinstance(event, StepPlanned):
            state = replay.seek(position + 1)
            slots: set[tuple[int, int]] = set()
            full: set[tuple[int, int]] = set()
            for sequence, table in state.tables.items():
                own = [(block, offset) for block in table for offset in range(state.block_size)]
                slots |= set(own)
                full |= set(own[: state.sequences[sequence].num_computed_tokens])
            used, filled = used + len(slots), filled + len(full)
    return 1 - filled / used


def waste(module: ModuleType) -> None:
    """Compute the share of used slots that hold no token, over all steps."""
    for name in (*NAMES, "shared"):
        answer, expected = module.waste(list(record(name))), counted(name)
        if not isinstance(answer, float) or abs(answer - expected) > 1e-9:
            raise Wrong(f"waste says {answer!r} of {name}.jsonl; it is {expected:.6f}")


PARTS = (waste,)
