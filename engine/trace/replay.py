"""Fold events into a state, and move forward and back through a record.

    replay = Replay.of(read_jsonl("trace.jsonl"))
    replay.state_at(117).tables["req-7"]   # the block table of req-7 after step 117
    replay.back()                          # one event earlier

Going back restores the checkpoint before the wanted position and folds from there: a few
milliseconds anywhere in the record. A `Replay` keeps every event; to have only the current state,
fold into an `EngineState`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from engine.trace.events import Event
from engine.trace.state import EngineState, ReplayError

__all__ = ["EngineState", "Replay", "ReplayError", "differences"]

CHECKPOINT_EVENTS = 1000  # a checkpoint copies the pool, so large pools get fewer


class Replay:
    """Hold a record and a position in it: `state` is the fold of the first `position` events.

    The sizes of the pools come from the record's `engine.kv_sized`; give them for a record without
    one.
    """

    def __init__(self, num_blocks: int = 0, num_host_blocks: int = 0) -> None:
        self.events: list[Event] = []
        self.position = 0
        self.state = EngineState(num_blocks, num_host_blocks)
        self._checkpoints: list[tuple[int, EngineState]] = [(0, self.state.copy())]
        self._step_ends: dict[int, int] = {}  # step → position after its last event

    @classmethod
    def of(cls, events: Iterable[Event]) -> Replay:
        """Fold a whole record. Raises ReplayError at the first event that doesn't follow."""
        replay = cls()
        for event in events:
            replay.fold(event)
        return replay

    def fold(self, event: Event) -> None:
        """Add an event to the record. Raises ReplayError.

        If the position was at the record's end, it moves to the new end; otherwise it stays.
        """
        at_end = self.position == len(self.events)
        self.events.append(event)
        if event.step and event.src == "core":
            self._step_ends[event.step] = len(self.events)
        if at_end:
            self._advance()

    def seek(self, position: int) -> EngineState:
        """Go to the state after the first `position` events, and return it.

        Raises IndexError outside of the record.
        """
        if not 0 <= position <= len(self.events):
            raise IndexError(
                f"position {position} is outside of a record of {len(self.events)} events"
            )
        index = bisect_right(self._checkpoints, position, key=lambda checkpoint: checkpoint[0]) - 1
        start, checkpoint = self._checkpoints[index]
        if position < self.position or start > self.position:
            self.position, self.state = start, checkpoint.copy()
        while self.position < position:
            self._advance()
        return self.state

    def forward(self, count: int = 1) -> EngineState:
        """Move forward by `count` events, at most to the record's end."""
        return self.seek(min(self.position + count, len(self.events)))

    def back(self, count: int = 1) -> EngineState:
        """Move back by `count` events, at most to the record's beginning."""
        return self.seek(max(self.position - count, 0))

    def state_at(self, step: int) -> EngineState:
        """Go to the state right after the last event of that step.

        Raises KeyError if the record has no such step.
        """
        if step not in self._step_ends:
            steps = sorted(self._step_ends)
            known = f"steps {steps[0]} to {steps[-1]}" if steps else "no steps"
            raise KeyError(f"step {step} is not in this record, which has {known}")
        return self.seek(self._step_ends[step])

    @property
    def steps(self) -> list[int]:
        """Return the steps of the record, in order."""
        return sorted(self._step_ends)

    def check(self) -> None:
        """Check the invariants of the state at this position. Raises ReplayError."""
        self.state.check()

    def to_dict(self) -> dict[str, Any]:
        """Return the state at this position as a dict that JSON can carry."""
        return self.state.to_dict()

    def _advance(self) -> None:
        self.state.fold(self.events[self.position])
        self.position += 1
        interval = max(CHECKPOINT_EVENTS, self.state.num_blocks // 8)
        if self.position - self._checkpoints[-1][0] >= interval:
            self._checkpoints.append((self.position, self.state.copy()))


def differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Return one line for each field of `expected` that differs in `actual`.

    Both are as `EngineState.to_dict()` gives them. Fields that `expected` lacks are not compared,
    so a test states only what it knows.
    """
    lines = []
    for name, wanted in expected.items():
        got = actual.get(name)
        if got == wanted:
            continue
        if isinstance(wanted, dict) and isinstance(got, dict):
            keys = [k for k in {**wanted, **got} if wanted.get(k) != got.get(k)]
            lines += [
                f"{name}[{k!r}]: expected {wanted.get(k)!r}, got {got.get(k)!r}" for k in keys
            ]
        else:
            lines.append(f"{name}: expected {wanted!r}, got {got!r}")
    return lines
