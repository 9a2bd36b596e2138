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


class Proposer(Protocol):
    """Propose tokens for one sequence at a time."""

    drafts: bool
    """Whether the worker's draft model finds the tokens: each place in a step costs a pass of it,
    and `propose` returns `UNKNOWN` for each."""

    def propose(self, request: Request, most: int) -> Proposed:
        """Propose up to `most` of the tokens that follow all of `request.token_ids`."""
        ...


def make_proposer(asked: Speculation) -> Proposer:
    """Make the proposer of a method."""
    if asked.method == "draft":
        return DraftProposer()
    return NgramProposer(asked.prompt_lookup_min, asked.prompt_lookup_max)


class NgramProposer:
    """Look up where the last tokens stood before, and propose what followed there.

    The longest equal part counts, of `longest` down to `shortest` tokens, and of several places
    the last. Known as prompt lookup (Saxena 2023).
    """

    drafts = False

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest = shortest
        self.longest = longest
        self._texts: WeakKeyDictionary[Request, bytearray] = WeakKeyDictionary()

    def propose(self, request: Request, most: int) -> Proposed:
        text = self._text(request)
        count = len(text) // TOKEN_BYTES
        if count <= self.shortest:
            return Proposed([])
        least = _last_place(text, count, self.shortest)
        if least < 0:  # most often: then nothing longer is found either
            return Proposed([])
        for length in range(min(self.longest, count - 1), self.shortest - 1, -1):
            place = _last_place(text, count, length) if length > self.shortest else least
            if place >= 0:
                source = place + length
                return Proposed(_copied(request.token_ids, source, most), source)
        return Proposed([])

    def _text(self, request: Request) -> bytearray:
        """Return the sequence's tokens as bytes, in which C searches."""
        text = self._texts.get(request)
        if text is None:
            text = self._texts[request] = bytearray()
        known = len(text) // TOKEN_BYTES
        if known < len(request.token_ids):
            text += array("i", request.token_ids[known:]).tobytes()
        return text


class DraftProposer:
    """Leave the proposals to the worker, which computes them in the step that checks them.

    So they may use that step's blocks, and nothing of them is left to be out of date. Known as
    speculative decoding with a draft model (Leviathan et al. 2023).
    """

    drafts = True

    def propose(self, request: Request, most: int) -> Proposed:
        return Proposed([UNKNOWN] * most)


def _last_place(text: bytearray, count: int, length: int) -> int:
    """Return where the last `length` of `count` tokens stood last before, −1 if nowhere."""
    wanted = bytes(text[(count - length) * TOKEN_BYTES :])
    end = (count - 1) * TOKEN_BYTES  # it may overlap itself, but not be itself
    while True:
        found = text.rfind(wanted, 0, end)
        if found < 0 or found % TOKEN_BYTES == 0:
            return found // TOKEN_BYTES
        end = found + len(wanted) - 1  # it began inside a token: look before it


def _copied(tokens: list[int], source: int, most: int) -> list[int]:
    """Return the `most` tokens from `source` on; after the last one they repeat from there."""
    found = tokens[source : source + most]
    while len(found) < most:
        found += found[: most - len(found)]
    return found
