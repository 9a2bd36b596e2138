"""Find the tokens that are marks in the text of an answer.

A mark that is one added token is found by its id, so the same letters written with other tokens
are plain text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from engine.text.detokenizer import Detokenizer


class Mark(NamedTuple):
    """Hold an added token in the text of an answer."""

    text: str
    special: bool


class Finder(Protocol):
    """Split an answer's text at its added tokens."""

    def feed(self, text: str, token_ids: Sequence[int]) -> Iterator[str | Mark]: ...

    def count_started(self, length: int) -> int: ...


class PlainText:
    """Take a text without tokens, in which all marks are written out."""

    def feed(self, text: str, _token_ids: Sequence[int]) -> Iterator[str | Mark]:
        if text:
            yield text

    def count_started(self, _length: int) -> int:
        return 0


class MarkFinder:
    """Split an answer's text at its added tokens.

    `detokenizer` must be a new one that shows every token as the answer's own one does.
    `added`: texts by token id. `special`: those that aren't meant to be read.
    """

    def __init__(self, detokenizer: Detokenizer, added: dict[int, str], special: Collection[int]):
        self._detokenizer = detokenizer
        self._added = added
        self._special = special
        self._num_detokenized = 0  # characters of all tokens so far
        self._num_split = 0  # characters that were given away
        self._num_counted = 0  # characters whose tokens were counted
        self._starts: deque[int] = deque()  # of the tokens that weren't
        self._found: deque[tuple[int, Mark]] = deque()
        self._text = ""  # released, and not given away: part of a mark

    def feed(self, text: str, token_ids: Sequence[int]) -> Iterator[str | Mark]:
        """Take new tokens, and the text that is released; yield the text in parts.

        The text may come later than its tokens, because a stop string may begin in it.
        """
        for token_id in token_ids:
            self._starts.append(self._num_detokenized)
            shown = self._detokenizer.feed(token_id)
            self._num_detokenized += len(shown)
            own = self._added.get(token_id)
            if own and shown.endswith(own):
                mark = Mark(own, token_id in self._special)
                self._found.append((self._num_detokenized - len(own), mark))
        self._text += text
        while self._found:
            place, mark = self._found[0]
            before = place - self._num_split
            if before > len(self._text):
                break
            if before:
                yield self._given(before)
            if len(self._text) < len(mark.text):
                return
            self._found.popleft()
            self._given(len(mark.text))
            yield mark
        if self._text:
            yield self._given(len(self._text))

    def count_started(self, length: int) -> int:
        """Count the tokens that begin in the next characters of what was given away."""
        self._num_counted += length
        count = 0
        while self._starts and self._starts[0] < self._num_counted:
            self._starts.popleft()
            count += 1
        return count

    def _given(self, length: int) -> str:
        given, self._text = self._text[:length], self._text[length:]
        self._num_split += length
        return given


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    most = min(len(text), len(mark) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
