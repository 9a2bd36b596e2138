"""Find stop strings, and decide which characters may be sent before a match is certain.

A Knuth–Morris–Pratt automaton follows each stop string: its state is the number of characters, at
the end of the text so far, that are the beginning of the stop string. So the largest state is
exactly what must be held back (at most max(len) − 1 characters, and none when no stop string has
begun), a full state is a match, and a character costs the same however long the text is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


class StopMatcher:
    """Take a text piece by piece. `matched` is the stop string that ended it, else None.

    The match that completes first wins; among matches that complete with the same character, the
    first in the list.
    """

    def __init__(self, stops: Sequence[str] = (), include_stop: bool = False):
        self.matched: str | None = None
        self._include = include_stop
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    @property
    def num_held(self) -> int:
        """Return the number of characters held back: they are the beginning of a stop string."""
        return len(self._held)

    def feed(self, text: str, armed: bool = True) -> str:
        """Take the next piece of text; return what may be sent now.

        After a match that is everything before the stop string (with it, if it is to be included),
        and the text has ended. While not `armed`, a stop string that completes doesn't count; one
        that has only begun may still complete later.
        """
        if not self._automata:
            return text
        text_start = len(self._held)
        pending = self._held + text
        for place, character in enumerate(text, start=text_start + 1):
            completed = [
                automaton
                for automaton in self._automata
                if (automaton.state or automaton.first == character)
                and automaton.advance(character)
            ]
            if completed and armed:
                self.matched = completed[0].stop
                self._held = ""
                return pending[: place if self._include else place - len(self.matched)]
        certain = len(pending) - max(automaton.state for automaton in self._automata)
        self._held = pending[certain:]
        return pending[:certain]

    def flush(self) -> str:
        """Return what was held back, because the text ended without a match."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """Match one stop string; the state is how much of it stands at the end of the text."""

    def __init__(self, stop: str):
        self.stop = stop
        self.first = stop[0]  # no other character changes the state 0
        self.state = 0
        self._fallback = _fallback(stop)

    def advance(self, character: str) -> bool:
        """Take one character; return whether it completes the stop string."""
        stop, state = self.stop, self.state
        while state and stop[state] != character:
            state = self._fallback[state]
        state += stop[state] == character
        complete = state == len(stop)
        self.state = self._fallback[state] if complete else state
        return complete


@lru_cache(maxsize=64)  # a request's sequences have the same stop strings
def _fallback(stop: str) -> list[int]:
    """Compute the fallback states of a stop string.

    For each k: the length of the longest proper beginning of `stop` that also ends its first k
    characters.
    """
    fallback = [0] * (len(stop) + 1)
    for length in range(2, len(stop) + 1):
        state = fallback[length - 1]
        while state and stop[state] != stop[length - 1]:
            state = fallback[state]
        fallback[length] = state + (stop[state] == stop[length - 1])
    return fallback
