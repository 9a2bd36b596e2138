"""Hold the grammar of one sequence: its matcher, and the tokens that come next in any case.

`Held` has a matcher of llguidance's Python class, `NativeHeld` one of its C interface. Both read
the same tokens with the same result, the latter many sequences in one native call. What its
matcher reports as an error is decided by a `Held` in its place, which also says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.worker.sampling.grammar_compiler import CompiledGrammar, reason_of
from engine.worker.sampling.native_matchers import Matcher


class Held:
    """Hold the matcher of one sequence, and the tokens that it forces next."""

    __slots__ = ("asked", "drawn", "forced", "masked", "matcher")

    def __init__(self, matcher: Any):
        self.matcher = matcher
        self.forced: list[int] = []  # the matcher has read all of them; empty: none, or not asked
        self.drawn = 0  # how many of these are drawn: fewer than all
        self.asked = False  # which tokens are forced after those
        self.masked = False  # the mask of the matcher's state is made

    def failure(self) -> str:
        """Return why the matcher failed; "" if it hasn't."""
        return reason_of(self.matcher) if self.matcher.is_error() else ""

    def fork(self) -> Held:
        """Make a matcher for a sibling, at the same place."""
        other = Held(self.matcher.deep_copy())
        other.forced, other.drawn, other.asked = self.forced, self.drawn, self.asked
        return other

    def next_forced(self) -> list[int]:
        """Return the tokens that must come next, up to one that may end the text."""
        self.ask()
        end = -1 if self.forced and self.matcher.is_stopped() else None
        return self.forced[self.drawn : end]

    def ask(self) -> None:
        """Ask which tokens come next in any case, and let the matcher read them."""
        if self.asked:
            return
        self.asked = True
        self.forced = self.matcher.compute_ff_tokens()
        if self.forced:
            self.matcher.consume_tokens(self.forced)
            self.masked = False

    def read(self, tokens: Sequence[int]) -> list[bool]:
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


class NativeHeld:
    """Own the same of a sequence in native memory, for `GrammarOps.read`.

    `address`: where it is.
    """

    __slots__ = ("_ops", "address", "grammar", "matcher")

    def __init__(self, grammar: CompiledGrammar, matcher: Matcher, address: int):
        """Take what is at an address."""
        self.grammar, self.matcher, self.address = grammar, matcher, address
        self._ops = matcher.tokenizer.ops

    @classmethod
    def of(cls, grammar: CompiledGrammar, line: int, history: Sequence[int]) -> NativeHeld | None:
        """Make one for a sequence that has drawn `history`; its mask is written to a line.

        None: this grammar isn't held natively, or has too many matchers now.
        """
        matcher = None if grammar.native is None else grammar.native.matcher(history)
        if matcher is None:
            return None
        return cls(grammar, matcher, matcher.tokenizer.ops.new(matcher.address, line, history))

    def __del__(self) -> None:
        self._ops.free(self.address)

    def fork(self) -> NativeHeld:
        """Make a matcher for a sibling, at the same place."""
        matcher = self.matcher.copy()
        return NativeHeld(self.grammar, matcher, self._ops.fork(self.address, matcher.address))

    def next_forced(self) -> list[int]:
        """Return the tokens that must come next, up to one that may end the text."""
        return self._ops.forced(self.matcher.tokenizer.c.functions, self.address)

    def by_python(self) -> Held:
        """Hold the same with a matcher of the Python class."""
        return Held(self.grammar.matcher(self._ops.history(self.address)))

    def release(self) -> None:
        """Give the matcher back to its grammar. Nothing may be done with this afterwards."""
        assert self.grammar.native is not None
        self.grammar.native.give_back(self.matcher)
