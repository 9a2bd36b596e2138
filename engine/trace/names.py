"""Give each request a short name, "req-7", the same in the log, in tools and on the page.

Requests are numbered as they appear in the record. Ids that are already short are kept.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable

from engine.trace.events import EngineSnapshot, Event
from engine.trace.sequences import request_and_index, request_of, sequence_name
from engine.trace.wording import one_line

SHORT_ENOUGH = 10  # an id of at most this many characters is its own short name
NAMES_KEPT = 10_000

_PERSON = re.compile(r"chatcmpl-as-([A-Za-z]{1,12})-")
"""Begins the id of a request that was asked in a person's name: the name is its short name."""

_WORD = re.compile(r"[\w.:-]*[\w-]")


class Names:
    """Hold the short names given out so far. Pass every event to `see`, in order."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self.num_named = 0

    @classmethod
    def of(cls, events: Iterable[Event]) -> Names:
        """Return the names that a whole record gives."""
        names = cls()
        for event in events:
            names.see(event)
        return names

    def see(self, event: Event) -> None:
        """Number the event's request, if it is new; after a snapshot, continue its numbers."""
        if event.request_id:
            self.name(event.request_id)
        if isinstance(event, EngineSnapshot):
            self._names = OrderedDict(event.names)
            self.num_named = event.num_named

    def name(self, request_id: str) -> str:
        """Return the short name: "req-7", "req-7.1" for a sibling. A new request gets the next
        number."""
        if len(request_id) <= SHORT_ENOUGH:
            return request_id
        parent, index = request_and_index(request_id)
        if index and parent in self._names:
            return sequence_name(self._names[parent], index)
        if request_id not in self._names:
            self.num_named += 1
            self._names[request_id] = self._new(request_id)
            if len(self._names) > NAMES_KEPT:
                self._names.popitem(last=False)
        return self._names[request_id]

    def _new(self, request_id: str) -> str:
        person = _PERSON.match(request_id)
        if person is None:
            return f"req-{self.num_named}"
        taken = person[1] in self._names.values()
        return f"{person[1]}-{self.num_named}" if taken else person[1]

    def plain(self, text: str) -> str:
        """Put a recorded text on one line, with short names in place of long ids."""
        return one_line(_WORD.sub(self._short, text))

    @property
    def given(self) -> dict[str, str]:
        """Return the short names in use, request → name; only the latest ones are kept."""
        return dict(self._names)

    def _short(self, match: re.Match[str]) -> str:
        word = match[0]
        known = word in self._names or request_of(word) in self._names
        return self.name(word) if known else word
