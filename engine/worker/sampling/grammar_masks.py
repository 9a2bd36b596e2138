"""Know which tokens the grammar of each sequence allows next: a set of bits for each seat.

Token t is bit t % 32 of word t // 32. Masks are computed on a thread of their own as soon as a
token is known, while the core books the step and the worker computes the next one. A matcher is a
function of its grammar and the tokens drawn, so a sequence that comes back after a preemption, and
one that forks, gets its state from its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from engine.core.messages import NewRow
from engine.rounding import ceil_div
from engine.worker.sampling.grammar_compiler import reason_of

BITS = 32


class GrammarMasks:
    """Hold the matchers of all seats, and the mask of each. Use it from the worker's thread."""

    def __init__(self, num_seats: int, vocab_size: int):
        self._shape = num_seats, ceil_div(vocab_size, BITS)
        self._masks: np.ndarray | None = None  # int32 [seats, words], from the first grammar on
        self._matchers: dict[int, Any] = {}  # by seat
        self._stale: set[int] = set()  # seats whose mask is of an earlier state
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._matchers)

    def __contains__(self, seat: int) -> bool:
        return seat in self._matchers

    def set(self, seat: int, row: NewRow) -> None:
        """Take a sequence, if it has a grammar."""
        if row.grammar is None:
            return
        self._wait()
        self._matchers[seat] = row.grammar.matcher(row.token_ids[row.num_prompt_tokens :])
        self._stale.add(seat)

    def clear(self, seat: int) -> None:
        """Forget the sequence of a seat."""
        if seat in self._matchers:
            self._wait()
            del self._matchers[seat]
            self._stale.discard(seat)

    def advance(self, seat: int, tokens: Sequence[int]) -> list[bool]:
        """Read the tokens drawn for a seat; return for each whether the text is complete with it.

        The sequence in the seat continues with the first; others are of siblings that fork from it.
        """
        self._wait()
        matcher = self._matchers[seat]
        forks = [matcher.deep_copy() for _ in tokens[1:]]
        self._stale.add(seat)
        return [_completes(one, token) for one, token in zip([matcher, *forks], tokens)]

    def failure(self, seat: int) -> str:
        """Return why the matcher of a seat failed; "" if it hasn't."""
        matcher = self._matchers[seat]
        return f"its grammar failed: {reason_of(matcher)}" if matcher.is_error() else ""

    def begin(self) -> None:
        """Begin to compute the masks of all seats whose state has changed."""
        if not self._stale:
            return
        self._wait()
        if self._masks is None:
            self._masks = np.zeros(self._shape, np.int32)
            self._thread = ThreadPoolExecutor(1, "grammar masks")
        assert self._thread is not None
        self._running = self._thread.submit(self._fill, sorted(self._stale))
        self._stale.clear()

    def masks(self, seats: np.ndarray) -> np.ndarray:
        """Return the masks of seats that have a grammar, int32 [rows, words].

        A failed matcher allows nothing. `seats`: int64 [rows].
        """
        self.begin()
        self._wait()
        assert self._masks is not None
        return self._masks[seats]

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _fill(self, seats: list[int]) -> None:
        assert self._masks is not None
        for seat in seats:
            matcher, mask = self._matchers[seat], self._masks[seat]
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if matcher.is_error():  # it allows the end then, as if the text were complete
                mask[:] = 0


def _completes(matcher: Any, token: int) -> bool:
    if token < 0 or matcher.is_stopped():  # nothing was drawn, or a step in flight at the end
        return False
    matcher.consume_token(token)
    return matcher.is_stopped() and not matcher.is_error()
