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
Python's lock after each mask. There, tokens are read and masks made by one native call for all
sequences, on the kernels' own threads (`held_grammars.py`); without native kernels one by one, when
tokens have been read, while what the matchers hold is in the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from engine.core.messages import NewRow
from engine.kernels.cpu.grammar_ops import Told
from engine.placeholders import NO_TOKEN
from engine.rounding import ceil_div
from engine.worker.sampling.held_grammars import Held, NativeHeld

BITS = 32


class Advanced(NamedTuple):
    """Hold what is to be told of a sequence after its draws."""

    place: int  # of the first among the step's
    complete: list[bool]  # of each token, whether the text is complete with it
    forced: list[int]  # the tokens that come next, where steps check them
    failed: bool  # nothing could be drawn


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
        self._held: dict[int, Held] = {}  # by seat
        self._native: dict[int, NativeHeld] = {}  # by seat; each seat is in one of both at most
        self._addresses = np.zeros(num_seats, np.int64)  # of these; 0: none
        self._stale: set[int] = set()  # seats whose state has changed
        self._thread: ThreadPoolExecutor | None = None
        self._together: Any = None  # llguidance's LLExecutor
        self._running: Future[None] | None = None

    def __bool__(self) -> bool:
        return bool(self._held or self._native)

    def __contains__(self, seat: int) -> bool:
        return seat in self._held or seat in self._native

    def set(self, seat: int, row: NewRow) -> None:
        """Take a sequence, if it has a grammar."""
        grammar = row.grammar
        if grammar is None:
            return
        self.clear(seat)
        if self._masks is None:
            self._masks = np.zeros(self._shape, np.int32)
        output = row.token_ids[row.num_prompt_tokens :]
        native = NativeHeld.of(grammar, seat, output)
        if native is None:
            self._held[seat] = Held(grammar.matcher(output))
        else:
            self._native[seat], self._addresses[seat] = native, native.address
        self._stale.add(seat)

    def clear(self, seat: int) -> None:
        """Forget the sequence of a seat."""
        if seat not in self:
            return
        self._wait()
        self._stale.discard(seat)
        self._held.pop(seat, None)
        native = self._native.pop(seat, None)
        if native is not None:
            self._addresses[seat] = 0
            native.release()

    def advance(
        self, seats: np.ndarray, tokens: np.ndarray, counted: np.ndarray | None = None
    ) -> list[Advanced]:
        """Read drawn tokens; return what is to be told of their sequences, most often nothing.

        Both int64 [draws]. Some seats may have no grammar, some several tokens, in their order.
        counted: bool [draws], which draws count; None: all.
        """
        self._wait()
        found: list[Advanced] = []
        if self._held:
            found += self._advance_held(seats, tokens, counted)
        if self._native:  # last: `Held` takes over from one that fails, and has read its draws then
            found += self._advance_native(seats, tokens, counted)
        return found

    def _advance_held(
        self, seats: np.ndarray, tokens: np.ndarray, counted: np.ndarray | None
    ) -> list[Advanced]:
        """Read the draws of all matchers of the Python class: see `advance`."""
        found = []
        its: dict[int, tuple[int, list[int]]] = {}
        for place, (seat, token) in enumerate(zip(seats.tolist(), tokens.tolist())):
            if seat in self._held and (counted is None or counted[place]):
                its.setdefault(seat, (place, []))[1].append(token)
        for seat, (place, drawn) in its.items():
            told = self._read(seat, place, drawn)
            if told is not None:
                found.append(told)
        return found

    def _read(self, seat: int, place: int, drawn: list[int]) -> Advanced | None:
        """Read the draws of a matcher of the Python class, the first of which has a place."""
        held = self._held[seat]
        self._stale.add(seat)
        complete, forced, failed = held.read(drawn), list[int](), NO_TOKEN in drawn
        if self.proposes and not (failed or complete[-1]):
            forced = held.next_forced()
        told = forced or failed or True in complete  # most steps have nothing to tell
        return Advanced(place, complete, forced, failed) if told else None

    def _advance_native(
        self, seats: np.ndarray, tokens: np.ndarray, counted: np.ndarray | None
    ) -> list[Advanced]:
        """Read the draws of all native matchers, and make their masks: see `advance`."""
        tokenizer = next(iter(self._native.values())).matcher.tokenizer
        held = self._addresses[seats]
        read = tokenizer.read(held, self._masks, tokens, counted, self.proposes)
        found = []
        for place, what, complete, forced in read:
            if what & Told.FAILED:
                seat = int(seats[place])
                self._take_over(seat)
                its = seats == seat if counted is None else (seats == seat) & counted
                told = self._read(seat, place, tokens[its].tolist())
                if told is not None:
                    found.append(told)
            elif what:
                found.append(Advanced(place, complete, forced, bool(what & Told.NOTHING_DRAWN)))
        return found

    def _take_over(self, seat: int) -> None:
        """Let a matcher of the Python class take the place of a native one that failed."""
        native = self._native.pop(seat)
        self._addresses[seat] = 0
        self._held[seat] = native.by_python()
        self._stale.add(seat)

    def fork(self, seat: int, tokens: Sequence[int]) -> list[bool]:
        """Read a token for a seat and for each sibling that forks from it.

        Return for each whether its text is complete with it. The sequence in the seat continues
        with the first.
        """
        self._wait()
        self._stale.add(seat)
        if seat in self._native:
            native = self._native[seat]
            all_ = [native, *(native.fork() for _ in tokens[1:])]
            held = np.array([one.address for one in all_])
            complete = [False] * len(tokens)
            for place, what, its, _ in native.matcher.tokenizer.read(held, None, np.array(tokens)):
                complete[place] = its[0] and not what & Told.FAILED
                if what & Told.FAILED and place == 0:
                    self._take_over(seat)
                    self._held[seat].read(tokens[:1])
            return complete
        one = self._held[seat]
        forks = [one.fork() for _ in tokens[1:]]
        return [one.read([token])[0] for one, token in zip([one, *forks], tokens)]

    def forced(self, seat: int) -> list[int]:
        """Return the tokens that must come next, up to one that may end the text."""
        self._wait()
        if seat in self._stale and seat in self._native:
            self.begin()
        return (self._native.get(seat) or self._held[seat]).next_forced()

    def failure(self, seat: int) -> str:
        """Return why the matcher of a seat failed; "" if it hasn't."""
        why = self._held[seat].failure() if seat in self._held else ""
        return f"its grammar failed: {why}" if why else ""

    def begin(self) -> None:
        """Begin to compute the masks of all changed states; a CPU computes them at once."""
        if not self._stale:
            return
        self._wait()
        native = [seat for seat in self._stale if seat in self._native]
        if native:
            tokenizer = self._native[native[0]].matcher.tokenizer
            held = self._addresses[native]
            for told in tokenizer.read(held, self._masks, proposes=self.proposes):
                if told.what & Told.FAILED:
                    self._take_over(native[told.place])
        seats = sorted(seat for seat in self._stale if seat in self._held)
        self._stale.clear()
        if not seats:
            return
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
        only = self.only(seats, ahead)
        assert self._masks is not None
        found = self._masks[seats]
        rows = np.flatnonzero(only >= 0)
        if len(rows):
            ids = only[rows].astype(np.uint32)
            found[rows] = 0
            found[rows, ids // BITS] = (np.uint32(1) << ids % BITS).view(np.int32)
        return found

    def only(self, seats: np.ndarray, ahead: np.ndarray | None = None) -> np.ndarray:
        """Return the only token that each row allows, int64 [rows].

        `NO_TOKEN`: it allows others, or any. Of `seats` some may have no grammar; else they, and
        `ahead`, are as for `masks`.
        """
        self.begin()
        self._wait()
        if self._native:
            ops = next(iter(self._native.values())).matcher.tokenizer.ops
            found = ops.only(self._addresses[seats], ahead)
        else:
            found = np.full(len(seats), NO_TOKEN, np.int64)
        for row, seat in enumerate(seats.tolist() if self._held else ()):
            held = self._held.get(seat)
            if held is not None and held.forced:
                place = held.drawn + (0 if ahead is None else int(ahead[row]))
                found[row] = held.forced[place] if place < len(held.forced) else NO_TOKEN
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
