"""Know which tokens the grammar of each sequence allows next: a set of bits for each seat.

Token t is bit t % 32 of word t // 32. A matcher is a function of its grammar and the tokens drawn,
so a sequence that comes back after a preemption, and one that forks, gets its state from its
tokens.

Where the grammar forces the next bytes, llguidance names the tokens that spell them, and the mask
of each of these states has only that token. The matcher reads such a run at once, before its tokens
are drawn: two calls in place of two or three for each token, and what may follow the run is known
ahead. `tests/worker/test_grammar_masks.py` holds the masks equal.

A device that computes by itself is not kept waiting: masks are made on a thread of their own while
it computes the next step. On a CPU that thread would share the cores of the kernels, and wait for
Python's lock after each mask: there they are made when tokens have been read, while what the
matchers hold is in the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import repeat
from typing import Any

import numpy as np

from engine.core.messages import NewRow
from engine.placeholders import NO_TOKEN
from engine.rounding import ceil_div
from engine.worker.sampling.grammar_compiler import reason_of

BITS = 32


class _Held:
    """Hold the matcher of one sequence, and the tokens that it forces next."""

    __slots__ = ("asked", "drawn", "forced", "masked", "matcher")

    def __init__(self, matcher: Any):
        self.matcher = matcher
        self.forced: list[int] = []  # the matcher has read all of them; empty: none, or not asked
        self.drawn = 0  # how many of these are drawn: fewer than all
        self.asked = False  # which tokens are forced after those
        self.masked = False  # the mask of the matcher's state is made

    def fork(self) -> _Held:
        """Make a matcher for a sibling, at the same place."""
        other = _Held(self.matcher.deep_copy())
        other.forced, other.drawn, other.asked = self.forced, self.drawn, self.asked
        return other

    def ask(self) -> None:
        """Ask which tokens come next in any case, and let the matcher read them."""
        if self.asked:
            return
        self.asked = True
        self.forced = self.matcher.compute_ff_tokens()
        if self.forced:
            self.matcher.consume_tokens(self.forced)
            self.masked = False

    def read(self, tokens: list[int]) -> list[bool]:
        """Read drawn tokens; return for each whether the text is complete with it."""
        complete: list[bool] = []
        if self.forced:
            left = self.forced[self.drawn : self.drawn + len(tokens)]
            if left == tokens[: len(left)]:
                complete = [False] * len(left)
                self.drawn += len(left)
                if self.drawn == len(self.forced):
                    complete[-1] = self._next_state()
        return complete + [self._read_one(token) for token in tokens[len(complete) :]]

    def _read_one(self, token: int) -> bool:
        """Read a token that isn't the next of a run."""
        if token < 0:
            return False  # nothing was drawn
        if self.forced and token == self.forced[self.drawn]:
            self.drawn += 1
            return self._next_state() if self.drawn == len(self.forced) else False
        if self.forced:  # a sampler of someone's own may draw what the grammar forbids
            self.matcher.rollback(len(self.forced) - self.drawn)
        if self.matcher.is_stopped():
            return False  # a step in flight at the end
        self.matcher.consume_token(token)
        self.masked = False
        return self._next_state()

    def _next_state(self) -> bool:
        """Forget the run that led here; return whether the text is complete."""
        self.forced, self.drawn, self.asked = [], 0, False
        return self.matcher.is_stopped() and not self.matcher.is_error()


class GrammarMasks:
    """Hold the matchers of all seats, and the mask of each. Use it from the worker's thread.

    `ahead`: masks are computed while the device computes. `proposes`: steps check forced tokens,
    and draw what follows them.
    """

    def __init__(self, num_seats: int, vocab_size: int, ahead: bool):
        self.proposes = False
        self._shape = num_seats, ceil_div(vocab_size, BITS)
        self._ahead = ahead
        self._masks: np.ndarray | None = None  # int32 [seats, words], from the first grammar on
        self._held: dict[int, _Held] = {}  # by seat
        self._stale: set[int] = set()  # seats whose state has changed
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

    def advance(self, seat: int, tokens: list[int]) -> list[bool]:
        """Read tokens drawn for a seat; return for each whether the text is complete with it."""
        self._wait()
        self._stale.add(seat)
        return self._held[seat].read(tokens)

    def fork(self, seat: int, tokens: Sequence[int]) -> list[bool]:
        """Read a token for a seat and for each sibling that forks from it: see `advance`.

        The sequence in the seat continues with the first.
        """
        self._wait()
        held = self._held[seat]
        self._stale.add(seat)
        forks = [held.fork() for _ in tokens[1:]]
        return [one.read([token])[0] for one, token in zip([held, *forks], tokens)]

    def forced(self, seat: int) -> list[int]:
        """Return the tokens that must come next, up to one that may end the text."""
        self._wait()
        held = self._held[seat]
        held.ask()
        end = -1 if held.forced and held.matcher.is_stopped() else None
        return held.forced[held.drawn : end]

    def failure(self, seat: int) -> str:
        """Return why the matcher of a seat failed; "" if it hasn't."""
        matcher = self._held[seat].matcher
        return f"its grammar failed: {reason_of(matcher)}" if matcher.is_error() else ""

    def begin(self) -> None:
        """Begin to compute the masks of all changed states; a CPU computes them at once."""
        if not self._stale:
            return
        self._wait()
        if self._masks is None:
            self._masks = np.zeros(self._shape, np.int32)
        seats = sorted(self._stale)
        self._stale.clear()
        if not self._ahead:
            self._fill(seats)
            return
        if self._thread is None:
            from llguidance import LLExecutor

            self._thread = ThreadPoolExecutor(1, "grammar masks")
            self._together = LLExecutor(1)
        self._running = self._thread.submit(self._fill, seats)

    @property
    def bits(self) -> np.ndarray:
        """Return the masks of all seats, int32 [seats, words], as of the last call of `only`.

        Where `only` names a token, the seat's mask is that of another token.
        """
        assert self._masks is not None
        return self._masks

    def masks(self, seats: np.ndarray, ahead: np.ndarray | None = None) -> np.ndarray:
        """Return the masks of seats that have a grammar, int32 [rows, words].

        A failed matcher allows nothing. `seats`: int64 [rows]. `ahead`: int64 [rows], how many
        tokens of `forced` come before the one that the mask is for; None: none in any row.
        """
        only = np.array(self.only(seats, ahead))
        assert self._masks is not None
        found = self._masks[seats]
        rows = np.flatnonzero(only >= 0)
        if len(rows):
            ids = only[rows].astype(np.uint32)
            found[rows] = 0
            found[rows, ids // BITS] = (np.uint32(1) << ids % BITS).view(np.int32)
        return found

    def only(self, seats: np.ndarray, ahead: np.ndarray | None = None) -> list[int]:
        """Return the only token that each row allows; `NO_TOKEN`: it allows others, or any.

        Of `seats` some may have no grammar; else they, and `ahead`, are as for `masks`.
        """
        self.begin()
        self._wait()
        held, found = self._held, []
        for seat, count in zip(seats.tolist(), repeat(0) if ahead is None else ahead.tolist()):
            one = held.get(seat)
            if one is None or not one.forced:
                found.append(NO_TOKEN)
                continue
            place = one.drawn + count
            found.append(one.forced[place] if place < len(one.forced) else NO_TOKEN)
        return found

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _fill(self, seats: list[int]) -> None:
        """Make the masks of states that steps may draw in next."""
        masks = self._masks
        assert masks is not None
        open_: list[tuple[Any, int]] = []
        for seat in seats:
            held = self._held[seat]
            held.ask()
            if not held.masked and (self.proposes or not held.forced):
                held.masked = True
                open_.append((held.matcher, seat))
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
