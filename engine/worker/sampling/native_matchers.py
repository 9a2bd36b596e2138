"""Own matchers of llguidance by its C interface, for native code that asks many at once.

Its Python class holds the same matcher, but a call for each sequence, one after another, costs a
small model a quarter of its step. The wheel's library exports the C interface too. Its structs are
written down here, so only versions whose structs are these are used.

A copy made by the C interface has lexer states of its own, while those of the Python class share
theirs, under a lock. So it may work on any thread beside others; but it begins with what the
original had seen, and what it learns must not be lost: a matcher that is done with is reset and
used again.
"""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from engine.kernels.cpu.grammar_ops import GrammarOps, Telling, Told
from engine.rounding import ceil_div
from engine.structured_outputs import GRAMMAR_LIMITS

VERSIONS = ("1.8.", "1.9.")
"""Beginnings of the versions of llguidance whose C structs are those below."""
MOST_MATCHERS, MOST_IDLE = 512, 128
"""Of the process, and those of them that no sequence has. A matcher takes some 0.1 to 0.6 MB."""
MOST_STATES = 2_000
"""Lexer states of one matcher, which take 1 or 2 KB each. The Python class, whose copies share
them, may have as many as `GRAMMAR_LIMITS` says, and takes over where these don't suffice."""
LONGEST_COPY_S = 0.002
"""A grammar that takes longer to copy is a large one; its copies would take too much memory."""
_CALLS = (
    "consume_token", "consume_tokens", "compute_ff_tokens", "compute_mask_into", "rollback",
    "is_stopped", "is_error",
)  # fmt: skip
"""The order of C++'s `MatcherFunctions`."""


class _Limits(ctypes.Structure):
    """Lay out LlgParserLimits."""

    _fields_ = [
        ("max_items_in_row", ctypes.c_size_t),
        ("initial_lexer_fuel", ctypes.c_uint64),
        ("step_lexer_fuel", ctypes.c_uint64),
        ("step_max_items", ctypes.c_size_t),
        ("max_lexer_states", ctypes.c_size_t),
        ("max_grammar_size", ctypes.c_size_t),
        ("precompute_large_lexemes", ctypes.c_bool),
        ("verbose_errors", ctypes.c_bool),
    ]


class _TokenizerInit(ctypes.Structure):
    """Lay out LlgTokenizerInitV2."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("vocab_size", ctypes.c_uint32),
        ("tok_eos", ctypes.c_uint32),
        ("token_lens", ctypes.c_void_p),
        ("token_bytes", ctypes.c_char_p),
        ("tokenizer_json", ctypes.c_char_p),
        ("tokenize_assumes_string", ctypes.c_bool),
        ("tokenize_fn", ctypes.c_void_p),
        ("use_approximate_greedy_tokenize_fn", ctypes.c_bool),
        ("tokenize_user_data", ctypes.c_void_p),
        ("slices", ctypes.c_void_p),
        ("tok_eos_extra", ctypes.c_void_p),
        ("tok_eos_extra_count", ctypes.c_uint32),
    ]


class _MatcherInit(ctypes.Structure):
    """Lay out LlgConstraintInit."""

    _fields_ = [
        ("tokenizer", ctypes.c_void_p),
        ("log_buffer_level", ctypes.c_uint32),
        ("log_stderr_level", ctypes.c_uint32),
        ("ff_tokens_ok", ctypes.c_bool),
        ("backtrack_ok", ctypes.c_bool),
        ("limits", _Limits),
    ]


class Interface:
    """Hold the functions of the library. `functions`: the address of those that C++ calls."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Find the functions. Raises AttributeError where one isn't exported."""
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        quick = ctypes.PyDLL(library._name)  # keeps Python's lock
        find = _find
        self.new_tokenizer = find(library, "new_tokenizer_v2", pointer, pointer, text, size)
        self.new_matcher = find(library, "new_matcher", pointer, pointer, text, text)
        self.set_defaults = find(quick, "constraint_init_set_defaults", None, pointer, pointer)
        self.free_tokenizer = find(quick, "free_tokenizer", None, pointer)
        self.free_matcher = find(quick, "free_matcher", None, pointer)
        self.clone_matcher = find(quick, "clone_matcher", pointer, pointer)
        self.is_error = find(quick, "matcher_is_error", ctypes.c_bool, pointer)
        self.reset = find(quick, "matcher_reset", ctypes.c_int32, pointer)
        self.consume = find(quick, "matcher_consume_tokens", ctypes.c_int32, pointer, pointer, size)
        calls = (getattr(library, f"llg_matcher_{name}") for name in _CALLS)
        self._calls = (pointer * len(_CALLS))(*(ctypes.cast(call, pointer).value for call in calls))
        self.functions = ctypes.addressof(self._calls)


@lru_cache(maxsize=1)
def interface() -> Interface | None:
    """Return llguidance's C interface; None: this wheel's library has none that is known here."""
    try:
        from llguidance import _lib

        library = ctypes.CDLL(_lib.__file__)
        version = _find(library, "get_version", ctypes.c_char_p)()
        found = Interface(library)
    except (ImportError, OSError, AttributeError):
        return None
    number = version.decode().removeprefix("llguidance@")
    return found if number.startswith(VERSIONS) else None


class NativeTokenizer:
    """Hold the tokens of one model for the C interface. `ops`: for the worker's thread."""

    def __init__(self, c: Interface, ops: GrammarOps, python: Any, eos: Sequence[int]) -> None:
        """Take the same tokens as `python`, an LLTokenizer. Raises ValueError."""
        self.c, self._python = c, python
        self.ops, self._compiling = ops.another(), ops.another()  # each for one thread
        self.idle: list[weakref.ref[NativeGrammar]] = []  # of each idle matcher, the oldest first
        self._tokenized = ops.tokenized()
        tokens = _bytes_of_tokens(python)
        self._words = ceil_div(len(tokens), 32)
        lengths, extra = np.array([*map(len, tokens)], np.uint32), np.array(eos[1:], np.uint32)
        init = _TokenizerInit(
            struct_size=ctypes.sizeof(_TokenizerInit),
            vocab_size=len(tokens),
            tok_eos=eos[0],
            token_lens=lengths.ctypes.data,
            token_bytes=b"".join(tokens),
            tokenize_fn=self._tokenized.function,
            tokenize_user_data=self._tokenized.address,
            tok_eos_extra=extra.ctypes.data,
            tok_eos_extra_count=len(extra),
        )
        why = ctypes.create_string_buffer(500)
        self.address = c.new_tokenizer(ctypes.byref(init), why, len(why))
        if not self.address:
            raise ValueError(why.value.decode(errors="replace"))

    def __del__(self) -> None:
        address = getattr(self, "address", None)
        if address:
            self.c.free_tokenizer(address)

    def compile(self, grammar: str) -> NativeGrammar | None:
        """Compile a grammar. None: it is too large to have copies of its own, or fails."""
        init = _MatcherInit()
        self.c.set_defaults(ctypes.byref(init), self.address)
        for name, limit in {**GRAMMAR_LIMITS, "max_lexer_states": MOST_STATES}.items():
            setattr(init.limits, name, limit)
        init.limits.verbose_errors = False
        init.log_stderr_level = 0
        text = grammar.encode()
        if b"\0" in text:
            return None  # the end of a text in C
        original = Matcher(self, self.c.new_matcher(ctypes.byref(init), b"llguidance", text))
        if self.c.is_error(original.address):
            return None
        self._make_first_mask(original)
        if not original.reset():
            return None
        took = []
        for _ in range(2):
            began = time.perf_counter()
            copy = original.copy()
            took.append(time.perf_counter() - began)
        return NativeGrammar(copy) if min(took) < LONGEST_COPY_S else None

    def _make_first_mask(self, matcher: Matcher) -> None:
        """Let a matcher see what its copies begin with, so that they don't compute it again."""
        address = self.ops.new(matcher.address, 0, ())
        try:
            self._read(self._compiling, np.array([address]), np.zeros((1, self._words), np.int32))
        finally:
            self.ops.free(address)

    def read(
        self,
        held: np.ndarray,
        masks: np.ndarray | None,
        tokens: np.ndarray | None = None,
        counted: np.ndarray | None = None,
        proposes: bool = True,
    ) -> list[Telling]:
        """Read draws as `GrammarOps.read` does, and learn what it must know for that."""
        return self._read(self.ops, held, masks, tokens, counted, proposes)

    def _read(
        self,
        ops: GrammarOps,
        held: np.ndarray,
        masks: np.ndarray | None,
        tokens: np.ndarray | None = None,
        counted: np.ndarray | None = None,
        proposes: bool = True,
    ) -> list[Telling]:
        functions = self.c.functions
        found = ops.read(functions, held, tokens, counted, masks, proposes)
        for number, telling in enumerate(found):
            while telling.what & Told.UNKNOWN:
                self._tokenized.learn(self._python.tokenize_bytes)
                its = held[telling.place : telling.place + 1]
                rest = ops.read(functions, its, None, None, masks, proposes)
                what, forced = telling.what & ~Told.UNKNOWN, list[int]()
                if rest:
                    what, forced = what | rest[0].what, rest[0].forced
                if telling.complete[-1] or what & Told.NOTHING_DRAWN:
                    what, forced = what & ~Told.FORCED, []
                telling = found[number] = telling._replace(what=what, forced=forced)
        return found


class Matcher:
    """Own one matcher: it is freed with this object. Use it from one thread at a time."""

    __slots__ = ("address", "tokenizer")
    alive = 0  # of the process

    def __init__(self, tokenizer: NativeTokenizer, address: int) -> None:
        """Take the matcher at an address."""
        self.tokenizer, self.address = tokenizer, address  # the tokenizer must live as long
        Matcher.alive += 1

    def __del__(self) -> None:
        Matcher.alive -= 1
        self.tokenizer.c.free_matcher(self.address)

    def copy(self) -> Matcher:
        """Make another in the same state."""
        return Matcher(self.tokenizer, self.tokenizer.c.clone_matcher(self.address))

    def consume(self, tokens: Sequence[int]) -> bool:
        """Read tokens; return whether the grammar allows them."""
        given = np.array(tokens, np.uint32)
        return self.tokenizer.c.consume(self.address, given.ctypes.data, len(given)) == 0

    def reset(self) -> bool:
        """Go back to the beginning; return whether that can be: not after an error."""
        return self.tokenizer.c.reset(self.address) == 0


class NativeGrammar:
    """Hold one compiled grammar, and matchers of it that no sequence has now."""

    def __init__(self, original: Matcher) -> None:
        """Take a matcher at its beginning."""
        self.tokenizer = original.tokenizer
        self._original = original  # only copied
        self._idle: list[Matcher] = []
        self._has_ended = False  # a sequence has; the original has seen what it saw
        self._ref = weakref.ref(self)

    def matcher(self, output: Sequence[int]) -> Matcher | None:
        """Return a sequence's own matcher, which has read `output`.

        None: there are too many, or this one can't read it.
        """
        if self._idle:
            found = self._idle.pop()
            self.tokenizer.idle.remove(self._ref)
        elif Matcher.alive < MOST_MATCHERS:
            found = self._original.copy()
        else:
            return None
        return found if not output or found.consume(output) else None

    def give_back(self, matcher: Matcher) -> None:
        """Take back the matcher of a sequence that has ended."""
        if not matcher.reset():
            return
        if not self._has_ended:
            self._has_ended = True
            self._original, matcher = matcher, self._original
        self._idle.append(matcher)
        self.tokenizer.idle.append(self._ref)
        if len(self.tokenizer.idle) > MOST_IDLE:
            oldest = self.tokenizer.idle.pop(0)()
            if oldest is not None:
                oldest._idle.pop(0)


def _bytes_of_tokens(tokenizer: Any) -> list[bytes]:
    """Return the bytes of all tokens of an LLTokenizer, as llguidance itself keeps them.

    A special token has a byte before its name that is in no text; a token that doesn't exist has
    none, which is told apart from one with the name that it is decoded to.
    """
    found = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode_bytes([token])
        if tokenizer.is_special_token(token):
            text = b"\xff" + text
        elif text == b"<[%d]>" % token and "EMPTY" in tokenizer.dbg_tokens([token]):
            text = b""
        found.append(text)
    return found


def _find(library: ctypes.CDLL, name: str, returns: Any, *takes: Any) -> Any:
    """Return a function of the library by the types of what it returns and takes."""
    found = getattr(library, f"llg_{name}")
    found.restype, found.argtypes = returns, list(takes)
    return found
