"""Know which tokens the grammar of each sequence allows next: a set of bits for each seat.

Token t is bit t % 32 of word t // 32. A matcher is a function of its grammar and the tokens drawn,
so a sequence that comes back after a preemption, and one that forks, gets its state from its
tokens.

Where the grammar forces the next bytes, llguidance names the tokens that spell them, and the mask
of each of these states has only that token. Such a run costs one call in place of one for each
token, two or three for each mask. `tests/worker/test_grammar_masks.py` holds the masks equal.

A device that computes by itself is not kept waiting: masks are made on a thread of their own while
it computes the next step. On a CPU that thread would share the cores of the kernels, and wait for
Python's lock after each mask: there they are made when they are needed.
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


class _Held:
    """Hold the matcher of one sequence, and the tokens that it forces next."""

    __slots__ = ("drawn", "forced", "matcher")

    def __init__(self, matcher: Any):
        self.matcher = matcher
        self.forced: list[int] = []  # from the matcher's state on; empty: unknown, or none
        self.drawn = 0  # how many of these are drawn; the matcher reads them together

    def next(self) -> int:
        """Return the only token that may come now; −1 if there are others."""
        if not self.forced:
            self.forced = self.matcher.compute_ff_tokens()
        return self.forced[self.drawn] if self.forced else -1

    def read(self, token: int) -> bool:
        """Read a drawn token; return whether the text is complete with it."""
        if self.forced and token == self.forced[self.drawn]:
            self.drawn += 1
            if self.drawn < len(self.forced):
                return False  # more is forced to follow
            self.settle()
        else:
            self.settle()
            if token < 0 or self.matcher.is_stopped():
                return False  # nothing was drawn, or a step in flight at the end
            self.matcher.consume_token(token)
        return self.matcher.is_stopped() and not self.matcher.is_error()

    def settle(self) -> None:
        """Let the matcher read all that is drawn."""
        if self.drawn:
            self.matcher.consume_tokens(self.forced[: self.drawn])
        self.forced, self.drawn = [], 0


class GrammarMasks:
    """Hold the matchers of all seats, and the mask of each. Use it from the worker's thread.

    `ahead`: masks are computed while the device computes.
    """

    def __init__(self, num_seats: int, vocab_size: int, ahead: bool):
        self._shape = num_seats, ceil_div(vocab_size, BITS)
        self._ahead = ahead
        self._masks: np.ndarray | None = None  # int32 [seats, words], from the first grammar on
        self._held: dict[int, _Held] = {}  # by seat
        self._stale: set[int] = set()  # seats whose mask is of an earlier state
        self._thread: ThreadPoolExecutor | None = None
        self._together: Any = None  # llguidance's LLExecutor
        self._running: Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._held)

    def __contains__(self, seat: int) -> bool:
        return seat in self._held

    def set(self, seat: int, row: NewRow) -> None:
        """Take a sequence, if it has a grammar."""
        if row.grammar is None:
            return
        self._wait()
        self._held[seat] = _Held(row.grammar.matcher(row.token_ids[row.num_prompt_tokens :]))
        self._stale.add(seat)

    def clear(self, seat: int) -> None:
        """Forget the sequence of a seat."""
        if seat in self._held:
            self._wait()
            del self._held[seat]
            self._stale.discard(seat)

    def advance(self, seat: int, tokens: Sequence[int]) -> list[bool]:
        """Read the tokens drawn for a seat; return for each whether the text is complete with it.

        The sequence in the seat continues with the first; others are of siblings that fork from it.
        """
        self._wait()
        held = self._held[seat]
        self._stale.add(seat)
        if len(tokens) == 1:
            return [held.read(tokens[0])]
        held.settle()
        forks = [_Held(held.matcher.deep_copy()) for _ in tokens[1:]]
        return [one.read(token) for one, token in zip([held, *forks], tokens)]

    def forced(self, seat: int) -> list[int]:
        """Return the tokens that must come next, but the last of them: another may follow that."""
        self._wait()
        held = self._held[seat]
        return held.forced[held.drawn : -1] if held.next() >= 0 else []

    def failure(self, seat: int) -> str:
        """Return why the matcher of a seat failed; "" if it hasn't."""
        matcher = self._held[seat].matcher
        return f"its grammar failed: {reason_of(matcher)}" if matcher.is_error() else ""

    def begin(self) -> None:
        """Begin to compute the masks of all changed states, if that is done ahead."""
        if not self._ahead or not self._stale:
            return
        self._wait()
        if self._thread is None:
            from llguidance import LLExecutor

            self._thread = ThreadPoolExecutor(1, "grammar masks")
            self._together = LLExecutor(1)
        seats = self._take_stale()
        self._running = self._thread.submit(self._fill, seats)

    def masks(self, seats: np.ndarray, ahead: np.ndarray | None = None) -> np.ndarray:
        """Return the masks of seats that have a grammar, int32 [rows, words].

        A failed matcher allows nothing. `seats`: int64 [rows]. `ahead`: int64 [rows], how many
        tokens of `forced` come before the one that the mask is for; None: none in any row.
        """
        self.begin()
        self._wait()
        if self._stale:
            self._fill(self._take_stale())
        assert self._masks is not None
        found = self._masks[seats]
        if ahead is not None:
            for place in np.flatnonzero(ahead).tolist():
                held = self._held[int(seats[place])]
                token = held.forced[held.drawn + int(ahead[place])]
                _allow_only(found[place : place + 1], [token])
        return found

    def _take_stale(self) -> list[int]:
        if self._masks is None:
            self._masks = np.zeros(self._shape, np.int32)
        seats = sorted(self._stale)
        self._stale.clear()
        return seats

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _fill(self, seats: list[int]) -> None:
        masks = self._masks
        assert masks is not None
        single: list[int] = []
        forced: list[int] = []
        open_: list[tuple[Any, int]] = []
        for seat in seats:
            token = self._held[seat].next()
            if token < 0:
                open_.append((self._held[seat].matcher, seat))
            else:
                single.append(seat)
                forced.append(token)
        if single:
            lines = np.zeros((len(single), masks.shape[1]), np.int32)
            _allow_only(lines, forced)
            masks[single] = lines
        if open_:
            self._compute(open_, masks)
        for matcher, seat in open_:
            if matcher.is_error():  # it allows the end then, as if the text were complete
                masks[seat] = 0

    def _compute(self, open_: list[tuple[Any, int]], masks: np.ndarray) -> None:
        """Compute the masks of matchers, each into the line of its seat."""
        base, size = masks.ctypes.data, masks.strides[0]
        if self._together is not None:  # without Python's lock, which the loop holds meanwhile
            self._together.unsafe_compute_mask_ptr(open_, base, size, len(masks))
            return
        for matcher, seat in open_:
            matcher.unsafe_compute_mask_ptr(base + seat * size, size)


def _allow_only(masks: np.ndarray, tokens: list[int]) -> None:
    """Write masks, int32 [rows, words], of which each allows the token of its row."""
    ids = np.array(tokens, np.uint32)
    masks[:] = 0
    masks[np.arange(len(ids)), ids // BITS] = (np.uint32(1) << ids % BITS).view(np.int32)
