"""Compile grammars for the worker, each once, on a thread of its own.

`text/form_to_grammar.py` has written and checked them. A compiled grammar is a template: a
sequence's own matcher is a copy of it, which takes a microsecond (`grammar_masks.py`).
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from engine.core.messages import GrammarTokenizer
from engine.structured_outputs import GRAMMAR_LIMITS

if TYPE_CHECKING:  # they bring torch, which compiling for Python needs not
    from engine.kernels.cpu.grammar_ops import GrammarOps
    from engine.worker.sampling.native_matchers import NativeGrammar, NativeTokenizer

MOST_KEPT = 64
"""Compiled grammars that are kept for later requests; those of running ones live as long as they
are used."""
LONGEST_TWICE_S = 0.02
"""A grammar that takes longer to compile isn't compiled a second time, for native code."""
STACK = 8 * 2**20  # bytes: twice what the check of a grammar had


_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'")


class GrammarError(ValueError):
    """Report a grammar that this model's tokens can't follow."""


class CompiledGrammar:
    """Hold one grammar, compiled. `duration_us`: what compiling took.

    `native`: it is compiled for native code, too.
    """

    def __init__(self, template: Any, duration_us: float, native: NativeGrammar | None = None):
        self._template = template
        self.duration_us = duration_us
        self.native = native

    def matcher(self, output: Sequence[int]) -> Any:
        """Make a sequence's own matcher, which has read the tokens of `output`."""
        matcher = self._template.deep_copy()
        if output:
            matcher.consume_tokens(list(output))
        return matcher


class GrammarCompiler:
    """Compile grammars for one model. `vocab_size`: the width of its logits.

    `ops`: what reads many grammars at once, if anything does.
    """

    def __init__(self, vocab_size: int, ops: GrammarOps | None = None):
        self._vocab_size = vocab_size
        self._ops = ops
        self._native: NativeTokenizer | None = None
        self._source: GrammarTokenizer | None = None
        self._tokenizer: Any = None
        self._known: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()
        self._orders: queue.SimpleQueue[Callable[[], None]] | None = None

    def set_tokenizer(self, source: GrammarTokenizer) -> None:
        """Say which tokens there are, before the first grammar."""
        self._source = source

    def known(self, grammar: str) -> CompiledGrammar | None:
        """Return a grammar that is compiled already."""
        with self._lock:
            found = self._known.get(grammar)
            if found is not None:
                self._known.move_to_end(grammar)
            return found

    def compile(self, grammar: str) -> CompiledGrammar:
        """Compile a grammar on this thread, unless it is known. Raises `GrammarError`."""
        return self.known(grammar) or self._compile(grammar)

    def compile_soon(
        self, grammar: str, then: Callable[[CompiledGrammar | GrammarError], None]
    ) -> None:
        """Compile a grammar on the thread for it, which then calls `then`."""

        def order() -> None:
            made: CompiledGrammar | GrammarError
            try:
                made = self.compile(grammar)
            except GrammarError as error:
                made = error
            except BaseException as error:  # a panic of Rust's, too: later ones need this thread
                made = GrammarError(f"{type(error).__name__}: {error}"[:500])
            then(made)

        if self._orders is None:
            self._orders = queue.SimpleQueue()
            threading.stack_size(STACK)
            try:
                threading.Thread(target=self._work, name="grammars", daemon=True).start()
            finally:
                threading.stack_size(0)
        self._orders.put(order)

    def _work(self) -> None:
        orders = self._orders
        assert orders is not None
        give_way()
        while True:
            orders.get()()

    def _compile(self, grammar: str) -> CompiledGrammar:
        from llguidance import LLMatcher, LLParserLimits

        started = time.perf_counter_ns()
        limits = LLParserLimits(**GRAMMAR_LIMITS, verbose_errors=False)
        tokens = self._tokens()
        began = time.perf_counter()
        matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(matcher.get_error().partition("\n")[0].strip()[:500])
        native = None
        if self._native is not None and time.perf_counter() - began < LONGEST_TWICE_S:
            native = self._native.compile(grammar)
        made = CompiledGrammar(matcher, (time.perf_counter_ns() - started) / 1e3, native)
        with self._lock:
            self._known[grammar] = made
            while len(self._known) > MOST_KEPT:
                self._known.popitem(last=False)
        return made

    def _tokens(self) -> Any:
        """Return llguidance's own tokenizer, made at the first grammar."""
        if self._tokenizer is None:
            from llguidance import LLTokenizer

            if self._source is None:
                raise GrammarError("the engine doesn't know the model's tokenizer")
            try:
                self._tokenizer = LLTokenizer(
                    self._source.tokenizer_json,
                    n_vocab=self._vocab_size,
                    eos_token=self._source.eos_token_ids,
                )
            except Exception as error:  # what it raises isn't declared
                raise GrammarError(
                    f"this model's tokenizer can't be used with grammars: {error}"
                ) from None
            if self._ops is not None:
                self._native = self._made_native(self._ops, self._source.eos_token_ids)
        return self._tokenizer

    def _made_native(self, ops: GrammarOps, eos: Sequence[int]) -> NativeTokenizer | None:
        """Return the tokenizer for native code, if llguidance has an interface for that here."""
        from engine.worker.sampling.native_matchers import NativeTokenizer, interface

        found = interface()
        return None if found is None else NativeTokenizer(found, ops, self._tokenizer, eos)


def reason_of(matcher: Any) -> str:
    """Return why a matcher failed, without the text that it had read.

    The first line is the reason, the rest is its state.
    """
    return _QUOTED.sub("…", matcher.get_error().partition("\n")[0]).strip() or "without a reason"


def give_way() -> None:
    """Let this thread run on any core, and only when nothing more important does (Linux)."""
    me = threading.get_native_id()
    try:
        os.sched_setaffinity(me, range(os.cpu_count() or 1))
        os.setpriority(os.PRIO_PROCESS, me, 10)
    except (AttributeError, OSError):
        pass  # not Linux, or not allowed: then it runs as other threads do
