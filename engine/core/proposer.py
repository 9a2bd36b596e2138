"""Propose the next tokens of a sequence, so that one step can check several (rule 11).

A proposal costs a row if it is wrong and saves a step if it is right; it never changes the text,
since the model draws each token as it would have drawn it without the proposal. So a proposer may
do anything: a new method is a class with what `Proposer` names.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

from engine.config.speculative import Speculation
from engine.core.request import Request
from engine.placeholders import UNKNOWN

TOKEN_BYTES = array("i").itemsize


class Proposed(NamedTuple):
    """Hold proposals for the tokens that come after all tokens that a sequence has."""

    token_ids: list[int]  # none: no idea
    source: int = -1  # position of the sequence from which they were copied; −1: none
    matched: int = 0  # tokens before that position that are equal to the sequence's last ones


class Proposer(Protocol):
    """Propose tokens for one sequence at a time."""

    drafts: bool
    """Whether the worker's draft model finds the tokens: each place in a step costs a pass of it,
    and `propose` returns `UNKNOWN` for each."""

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        """Propose up to `most` of the tokens that follow all of `request.token_ids`.

        least_equal: tokens before a copy that must be equal to the last ones, if it's copied.
        """
        ...


def make_proposer(asked: Speculation) -> Proposer:
    """Make the proposer of a method."""
    if asked.method == "draft":
        return DraftProposer()
    return NgramProposer(asked.prompt_lookup_min, asked.prompt_lookup_max)


class NgramProposer:
    """Look up where the last tokens stood before, and propose what followed there.

    The longest equal part counts, of `longest` down to `shortest` tokens, and of several places
    the last. While what was proposed comes true, it goes on at the same place without a search.
    Known as prompt lookup (Saxena 2023).
    """

    drafts = False

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest = shortest
        self.longest = longest
        self._texts: WeakKeyDictionary[Request, _Text] = WeakKeyDictionary()

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        text = self._texts.get(request)
        if text is None:
            text = self._texts[request] = _Text()
        text.follow(request.token_ids)
        if not text.matched:
            text.search(max(self.shortest, least_equal), self.longest)
        if not text.matched or text.matched < least_equal:
            return Proposed([])
        source = text.count - text.distance
        return Proposed(_copied(request.token_ids, source, most), source, text.matched)


class _Text:
    """Hold a sequence's tokens as bytes, in which C searches, and where its last ones stood."""

    def __init__(self) -> None:
        self.count = 0  # tokens
        self.matched = 0  # last tokens that are equal to those `distance` before them
        self.distance = 0
        self._bytes = bytearray()

    def follow(self, token_ids: list[int]) -> None:
        """Take the tokens that have come. One that isn't the copied one ends the equal part."""
        known, self.count = self.count, len(token_ids)
        self._bytes += array("i", token_ids[known:]).tobytes()
        if self.matched:
            begin = known - self.distance
            if token_ids[begin : begin + self.count - known] == token_ids[known:]:
                self.matched += self.count - known
            else:
                self.matched = 0

    def search(self, shortest: int, longest: int) -> None:
        """Find the longest equal part of so many tokens, and of several places the last."""
        length, end = shortest, self.count - 1  # it may overlap itself, but not be itself
        longest = min(longest, self.count - 1)
        while length <= longest and (place := self._last_place(length, end)) >= 0:
            own = self.count - length
            while length < longest and place and self._same(place - 1, own - 1):
                place, own, length = place - 1, own - 1, length + 1
            self.matched, self.distance = length, own - place
            length, end = length + 1, place + length - 1

    def _same(self, place: int, other: int) -> bool:
        """Return whether the tokens at two places are equal."""
        one, two = place * TOKEN_BYTES, other * TOKEN_BYTES
        return self._bytes[one : one + TOKEN_BYTES] == self._bytes[two : two + TOKEN_BYTES]

    def _last_place(self, length: int, end: int) -> int:
        """Return where the last `length` tokens stood last before the place `end`; −1: nowhere."""
        wanted = bytes(self._bytes[(self.count - length) * TOKEN_BYTES :])
        end *= TOKEN_BYTES
        while True:
            found = self._bytes.rfind(wanted, 0, end)
            if found < 0 or found % TOKEN_BYTES == 0:
                return found // TOKEN_BYTES
            end = found + len(wanted) - 1  # it began inside a token: look before it


class DraftProposer:
    """Leave the proposals to the worker, which computes them in the step that checks them.

    So they may use that step's blocks, and nothing of them is left to be out of date. Known as
    speculative decoding with a draft model (Leviathan et al. 2023).
    """

    drafts = True

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        return Proposed([UNKNOWN] * most)


def _copied(tokens: list[int], source: int, most: int) -> list[int]:
    """Return the `most` tokens from `source` on; after the last one they repeat from there."""
    found = tokens[source : source + most]
    while len(found) < most:
        found += found[: most - len(found)]
    return found
