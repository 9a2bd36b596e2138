"""Keep what a log line needs beside its event: short names, open plans, the state of the pool."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.names import Names
from engine.trace.state import EngineState, ReplayError


class Context:
    """Keep what the annotator knows so far. Pass every event to `see`, in order.

    Its size is bounded by the requests that are alive, not by the record.
    """

    def __init__(self) -> None:
        self.state: EngineState | None = EngineState()  # None after a gap in the record
        self.plans: dict[int, ev.StepPlanned] = {}  # by step, until it is finished
        self.block_size = 0
        self.texts: dict[int, str] = {}  # token id → its text, if the record has it
        self._names = Names()

    def see(self, event: Event) -> None:
        """Update the context with an event."""
        self._names.see(event)
        if isinstance(event, ev.StepPlanned):
            self.plans[event.step] = event
        elif isinstance(event, ev.StepFinished):
            self._drop_plans(event.step - 1)  # its own is for whoever asks: `finish_step`
        elif isinstance(event, ev.EngineKvSized):
            self.block_size = event.block_size
        elif isinstance(event, ev.TextTokens):
            self.texts.update(event.texts)
        elif isinstance(event, ev.EngineSnapshot):
            self._take_over(event)
        if self.state is not None:
            try:
                self.state.fold(event)
            except ReplayError:  # a gap in the record: lines go on without the state
                self.state = None

    def finish_step(self, step: int) -> list[ev.StepRow]:
        """Return the rows of a finished step; none if its plan isn't known.

        Steps finish in order, so older plans that are still here will never finish: they are
        dropped.
        """
        plan = self.plans.get(step)
        self._drop_plans(step)
        return plan.rows if plan else []

    def _drop_plans(self, last: int) -> None:
        """Drop the plans up to this step."""
        for planned in [planned for planned in self.plans if planned <= last]:
            del self.plans[planned]

    def name(self, request_id: str) -> str:
        """Return a request's short name, as `Names` does."""
        return self._names.name(request_id)

    def plain(self, text: str) -> str:
        """Put a recorded text on one line, with short names in place of long ids."""
        return self._names.plain(text)

    @property
    def names(self) -> dict[str, str]:
        """Return the short names in use, request → name; only the latest ones are kept."""
        return self._names.given

    @property
    def num_named(self) -> int:
        return self._names.num_named

    def _take_over(self, event: ev.EngineSnapshot) -> None:
        self.state = EngineState()
        self.texts.update(event.texts)
        self.plans = {
            planned.step: ev.StepPlanned(step=planned.step, rows=planned.rows)
            for planned in event.planned
        }
        for standing in event.standing:
            if isinstance(standing, ev.EngineKvSized):
                self.block_size = standing.block_size
