"""Record what the core does, in order; what many requests do in one step becomes one event."""

from __future__ import annotations

from engine.trace import events
from engine.trace.recorder import Recorder
from engine.trace.together import BlocksCached, BlocksGrown, Evicted


class CoreRecord:
    """Keep the rows of events that stand for many requests, until another event follows them.

    Every event of the core goes through `record`, so no event can come before what it follows.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.enabled = recorder.enabled
        self.grown: list[tuple[str, list[int], int, int, int, Evicted]] = []
        """Rows of the next `BlocksGrown`; added only while `enabled`."""
        self.cached: list[tuple[str, list[int], list[bytes]]] = []
        """Rows of the next `BlocksCached`."""

    def record(self, event: events.Event) -> None:
        """Record the rows kept so far, then the event."""
        if self.grown:
            self.recorder.record(BlocksGrown(rows=self.grown))
            self.grown = []
        if self.cached:
            self.recorder.record(BlocksCached(rows=self.cached))
            self.cached = []
        self.recorder.record(event)

    @property
    def complete(self) -> bool:
        """Return whether no row is kept, as it must be between two steps."""
        return not (self.grown or self.cached)
