"""Context: what the log knows besides the event at hand: short names, open plans, the state of the
pool.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.state import EngineState, ReplayError
from engine.trace.wording import one_line

SHORT_ENOUGH = 10  # an id of at most so many characters is its own short name
NAMES_KEPT = 10_000

_WORD = re.compile(r"[\w.-]*[\w-]")


class Context:
    """What the annotator knows so far. `see` every event, in order; it grows with what is alive,
    not with the record.
    """

    def __init__(self) -> None:
        self.state: EngineState | None = EngineState()  # None once the record has a gap
        self.plans: dict[int, ev.StepPlanned] = {}  # by step, until it is finished
        self.block_size = 0
        self.texts: dict[int, str] = {}  # token id → its text, where the record has it
        self._names: OrderedDict[str, str] = OrderedDict()
        self._numbered = 0

    def see(self, event: Event) -> None:
        """Learn from an event."""
        if event.request_id:
            self.name(event.request_id)  # numbered as they appear
        if isinstance(event, ev.StepPlanned):
            self.plans[event.step] = event
        elif isinstance(event, ev.EngineKvSized):
            self.block_size = event.block_size
        elif isinstance(event, ev.TextTokens):
            self.texts.update(event.texts)
        elif isinstance(event, ev.EngineSnapshot):
            self._take_over(event)
        if self.state is not None:
            try:
                self.state.fold(event)
            except (
                ReplayError
            ):  # the record has a gap: lines go on, without what only the state knows
                self.state = None

    def finish_step(self, step: int) -> list[ev.StepRow]:
        """The rows of a step that is finished; none if its plan isn't known. Steps finish in order,
        so older plans that are still here have lost their end: they go, too."""
        plan = self.plans.get(step)
        for planned in [planned for planned in self.plans if planned <= step]:
            del self.plans[planned]
        return plan.rows if plan else []

    def name(self, request_id: str) -> str:
        """A short name that stays the same: "req-7", "req-7.1" for a sibling; short ids stay as
        they are.
        """
        if len(request_id) <= SHORT_ENOUGH:
            return request_id
        parent, dot, index = request_id.rpartition(".")
        if dot and index.isdecimal() and parent in self._names:
            return f"{self._names[parent]}.{index}"
        if request_id not in self._names:
            self._numbered += 1
            self._names[request_id] = f"req-{self._numbered}"
            if len(self._names) > NAMES_KEPT:
                self._names.popitem(last=False)
        return self._names[request_id]

    def plain(self, text: str) -> str:
        """A recorded text on one line, with short names in place of long ids."""
        return one_line(_WORD.sub(self._short, text))

    @property
    def names(self) -> dict[str, str]:
        """The short names that were given out: request → name; the latest ones."""
        return dict(self._names)

    @property
    def num_named(self) -> int:
        return self._numbered

    def _take_over(self, event: ev.EngineSnapshot) -> None:
        self.state = EngineState()
        self._names = OrderedDict(event.names)
        self._numbered = event.num_named
        self.texts.update(event.texts)
        self.plans = {
            planned.step: ev.StepPlanned(step=planned.step, rows=planned.rows)
            for planned in event.planned
        }
        for standing in event.standing:
            if isinstance(standing, ev.EngineKvSized):
                self.block_size = standing.block_size

    def _short(self, match: re.Match[str]) -> str:
        word = match[0]
        parent, _dot, _index = word.rpartition(".")
        return self.name(word) if word in self._names or parent in self._names else word
