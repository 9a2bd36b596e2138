"""Read drawn tokens into the grammars of many sequences by one native call: see `grammars.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from enum import IntFlag
from struct import Struct
from typing import NamedTuple

import numpy as np

from engine.kernels.cpu.attention_ops import function

_READ_GRAMMARS = Struct("11q").pack
_ONLY = Struct("4q").pack
TELLING, MOST_FORCED = 4, 64  # as in C++
NO_SUCH_TOKEN = 2**32 - 1


class Told(IntFlag):
    """Say what there is to tell of a sequence after its draws."""

    COMPLETE = 1  # the text, with one of the tokens
    FORCED = 2  # a token comes next in any case, and steps check such tokens
    NOTHING_DRAWN = 4
    FAILED = 8  # llguidance reports an error; nothing was read
    UNKNOWN = 16  # tokens of a text must be learned; then the rest must be done


class Telling(NamedTuple):
    """Hold what there is to tell of a sequence."""

    place: int  # of its first draw
    what: int  # a Told
    complete: list[bool]  # of each of its draws, whether the text is complete with it
    forced: list[int]  # the next tokens


class _Room:
    """Hold memory for what the call writes, and the addresses of its parts."""

    def __init__(self, draws: int) -> None:
        self.draws = draws
        self.told = np.empty((draws, TELLING), np.int64)
        self.complete = np.empty(draws, bool)
        self.forced = np.empty(draws * MOST_FORCED, np.uint32)
        parts = self.told, self.complete, self.forced
        self.addresses = [part.ctypes.data for part in parts]


class TokenizedTexts:
    """Hold what a tokenizer made of texts, for matchers that ask on any thread.

    `function`, `address`: llguidance's tokenize_fn and its tokenize_user_data.
    """

    def __init__(self, library: ctypes.PyDLL) -> None:
        """Make an empty table, in memory of the native library."""
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
        self._free = _typed(library, "free_tokenized", None, pointer)
        self._add = _typed(library, "add_tokenized", None, pointer, text, size, pointer, size)
        self._take = _typed(library, "take_unknown", size, pointer, text, size)
        self.function = ctypes.cast(library.glasshouse_tokenize, ctypes.c_void_p).value
        self.address = _typed(library, "new_tokenized", pointer)()

    def __del__(self) -> None:
        self._free(self.address)

    def learn(self, tokenize: Callable[[bytes], Sequence[int]]) -> None:
        """Add the tokens of all texts that were asked for and not known."""
        room = 4096
        while True:
            text = ctypes.create_string_buffer(room)
            size = self._take(self.address, text, room)
            if size < 0:
                return
            if size > room:
                room = size
                continue
            taken = text.raw[:size]
            tokens = np.array(_tokens(tokenize, taken), np.uint32)
            self._add(self.address, taken, size, tokens.ctypes.data, len(tokens))


class GrammarOps:
    """Hold the functions of one loaded library that work on grammars.

    `functions`, below: the address of C++'s `MatcherFunctions`. `held`: int64, the address of the
    grammar of each draw's sequence, or 0.
    """

    def __init__(self, library: ctypes.PyDLL) -> None:
        """Bind the library."""
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._library = library
        self._read = function(library, "read_grammars", size)
        self._room = _Room(64)
        self._only = function(library, "only")
        self._new = _typed(library, "new_held", pointer, pointer, size, pointer, size)
        self._history = _typed(library, "history", size, pointer, pointer, size)
        self._forced = _typed(library, "forced", size, pointer, pointer, pointer, size)
        self.fork = _typed(library, "fork_held", pointer, pointer, pointer)
        self.free = _typed(library, "free_held", None, pointer)

    def another(self) -> GrammarOps:
        """Make one for another thread: `read` uses memory of its own."""
        return GrammarOps(self._library)

    def tokenized(self) -> TokenizedTexts:
        """Make an empty table of texts and their tokens."""
        return TokenizedTexts(self._library)

    def new(self, matcher: int, line: int, history: Sequence[int]) -> int:
        """Hold a sequence's matcher, which has read `history`; its mask is written to a line."""
        read = np.array(history, np.uint32)
        return self._new(matcher, line, read.ctypes.data, len(read))

    def read(
        self,
        functions: int,
        held: np.ndarray,
        tokens: np.ndarray | None,
        counted: np.ndarray | None,
        masks: np.ndarray | None,
        proposes: bool,
    ) -> list[Telling]:
        """Read draws into grammars, ask what is forced next, and make masks to draw with.

        tokens: int64 [draws], negative where nothing was drawn; None: only the rest is done.
        counted: bool [draws], which draws count; None: all. masks: int32 [lines, words], written;
        None: tokens are read, and nothing else. proposes: steps check forced tokens, and draw what
        follows them.
        """
        count, room = len(held), self._room
        if count > room.draws:
            room = self._room = _Room(2 * count)
        number = self._read(
            _READ_GRAMMARS(
                functions,
                held.ctypes.data,
                0 if tokens is None else tokens.ctypes.data,
                0 if counted is None else counted.ctypes.data,
                0 if masks is None else masks.ctypes.data,
                *room.addresses,
                count,
                0 if masks is None else masks.shape[1],
                proposes,
            )
        )
        found, draws, forced = [], 0, 0
        for place, what, its, ids in room.told[:number].tolist():
            complete, tokens_ = (
                room.complete[draws : draws + its],
                room.forced[forced : forced + ids],
            )
            found.append(Telling(place, what, complete.tolist(), tokens_.tolist()))
            draws, forced = draws + its, forced + ids
        return found

    def only(self, held: np.ndarray, ahead: np.ndarray | None) -> np.ndarray:
        """Return the only token that each draw allows, or -1. int64 [draws]

        ahead: int64 [draws], how many forced tokens come before; None: none in any.
        """
        out = np.empty(len(held), np.int64)
        before = 0 if ahead is None else ahead.ctypes.data
        self._only(_ONLY(held.ctypes.data, before, out.ctypes.data, len(held)))
        return out

    def forced(self, functions: int, held: int) -> list[int]:
        """Return the tokens that come next in any case, up to one that may end the text."""
        return _copied(lambda out, room: self._forced(functions, held, out, room))

    def history(self, held: int) -> list[int]:
        """Return the tokens that were drawn."""
        return _copied(lambda out, room: self._history(held, out, room))


def _tokens(tokenize: Callable[[bytes], Sequence[int]], text: bytes) -> Sequence[int]:
    """Return a text's tokens. Where the tokenizer fails one that there isn't: an error then."""
    try:
        return tokenize(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of Rust's is no Exception
        return (NO_SUCH_TOKEN,)


def _copied(copy: Callable[[int, int], int]) -> list[int]:
    """Return tokens that a function copies to an address with some room; it returns how many."""
    room = 64
    while True:
        out = np.empty(room, np.uint32)
        count = copy(out.ctypes.data, room)
        if count <= room:
            return out[:count].tolist()
        room = count


def _typed(
    library: ctypes.PyDLL, name: str, returns: type | None, *takes: type
) -> Callable[..., int]:
    """Return a function of the library by the types of what it takes and returns."""
    found = getattr(library, f"glasshouse_{name}")
    found.restype, found.argtypes = returns, list(takes)
    return found
