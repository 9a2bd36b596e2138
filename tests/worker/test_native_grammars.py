"""Grammars that native code reads give what llguidance's Python class gives, call by call."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.config import POCKET_MODEL
from engine.core.messages import GrammarTokenizer
from engine.kernels import cpu
from engine.placeholders import NO_TOKEN
from engine.structured_outputs import StructuredOutputsParams
from engine.text.form_to_grammar import checked_grammar
from engine.worker.sampling import grammar_compiler, native_matchers
from engine.worker.sampling.grammar_compiler import CompiledGrammar, GrammarCompiler
from engine.worker.sampling.grammar_masks import GrammarMasks
from engine.worker.sampling.native_matchers import Matcher
from tests.support.schemas import SCHEMAS

VOCAB = 2048 + 40  # with tokens that the tokenizer doesn't have
SEATS = 5
EOS = [0, 1]

pytestmark = pytest.mark.skipif(
    cpu.native() is None or native_matchers.interface() is None, reason="no native grammars here"
)


def compiler() -> GrammarCompiler:
    ops = cpu.native()
    assert ops is not None
    made = GrammarCompiler(VOCAB, ops.grammars)
    source = (Path(POCKET_MODEL) / "tokenizer.json").read_text()
    made.set_tokenizer(GrammarTokenizer(tokenizer_json=source, eos_token_ids=EOS))
    return made


@pytest.fixture(scope="module")
def grammars(request) -> GrammarCompiler:
    made = compiler()
    request.getfixturevalue("in_time")
    return made


@pytest.fixture(scope="module")
def in_time() -> Any:
    """Let no grammar be held by Python because this machine is busy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grammar_compiler, "LONGEST_TWICE_S", 60)
        patch.setattr(native_matchers, "LONGEST_COPY_S", 60)
        yield


def compiled(grammars: GrammarCompiler, **form: Any) -> CompiledGrammar:
    return grammars.compile(checked_grammar(StructuredOutputsParams(**form), {}).grammar)


def without_native(grammar: CompiledGrammar) -> Any:
    return SimpleNamespace(matcher=grammar.matcher, native=None)


def row_of(grammar: Any, output: list[int]) -> Any:
    return SimpleNamespace(grammar=grammar, token_ids=[7, *output], num_prompt_tokens=1)


class Pair:
    """Do the same with native matchers and with those of the Python class, and compare."""

    def __init__(self, grammar: CompiledGrammar, proposes: bool):
        self.both = GrammarMasks(SEATS, VOCAB, False), GrammarMasks(SEATS, VOCAB, False)
        self.grammars = grammar, without_native(grammar)
        for masks in self.both:
            masks.proposes = proposes

    def do(self, name: str, *arguments: Any) -> Any:
        native, python = [getattr(masks, name)(*arguments) for masks in self.both]
        if isinstance(native, np.ndarray):
            assert (native == python).all(), (name, arguments)
        elif name == "advance":
            assert sorted(native) == sorted(python), arguments
        elif name == "failure":  # what else llguidance says depends on how tokens came
            assert [*map(bool, (native, python))] in ([True] * 2, [False] * 2)
        else:
            assert native == python, (name, arguments)
        return native

    def set(self, seat: int, output: list[int]) -> None:
        for masks, grammar in zip(self.both, self.grammars):
            masks.set(seat, row_of(grammar, output))

    def compare(self) -> np.ndarray:
        """Compare all that steps ask for, and return the masks."""
        seats, python = np.arange(SEATS), self.both[1]
        for seat in range(SEATS):
            if python.proposes:
                self.do("forced", seat)
            self.do("failure", seat)
        held = [python._held[seat] for seat in range(SEATS)]
        longest = [len(one.forced) - one.drawn for one in held]
        for ahead in range(1 + (max(longest) if python.proposes else 0)):
            self.do("masks", seats, np.minimum(ahead, longest) if ahead else None)
        return self.do("masks", seats)


def fuzz(grammar: CompiledGrammar, seed: int, proposes: bool, steps: int) -> int:
    """Draw at random, also what is forbidden; return how many sequences were complete."""
    draw, pair, complete = random.Random(seed), Pair(grammar, proposes), 0
    outputs: list[list[int]] = [[] for _ in range(SEATS)]
    for seat in range(SEATS):
        pair.set(seat, [])
    for _ in range(steps):
        masks = pair.compare()
        seats, tokens, counted = [], [], []
        for seat in range(SEATS):
            bits = np.unpackbits(masks[seat].view(np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits).tolist()
            chance = draw.random()
            if chance < 0.01 or not allowed:
                its = [draw.randrange(2, VOCAB)]
            elif chance < 0.03:
                its = [NO_TOKEN]
            else:
                its = [draw.choice(allowed)]
                forced = pair.both[1]._held[seat].forced[1:4] if draw.random() < 0.5 else []
                its += forced
            seats += [seat] * len(its)
            tokens += its
            counted += [True] * len(its)
            if draw.random() < 0.05:
                seats, tokens, counted = [*seats, seat], [*tokens, 5], [*counted, False]
            outputs[seat] += [token for token in its if token >= 0]
        order = sorted(range(len(seats)), key=lambda _: draw.random())
        order.sort(key=lambda i: seats[:i].count(seats[i]))  # each seat's in their order
        told = pair.do("advance", *(np.array(each)[order] for each in (seats, tokens, counted)))
        complete += sum(any(one.complete) for one in told)
        if draw.random() < 0.3:
            pair.compare()
        for seat in range(SEATS):
            failed = bool(pair.both[1].failure(seat))
            assert seat in pair.both[0]._native or failed
            if failed or draw.random() < 0.03 or len(outputs[seat]) > 40:
                outputs[seat] = []
                pair.do("clear", seat)
                pair.set(seat, [])
            elif draw.random() < 0.03:  # it comes back after a preemption
                pair.do("clear", seat)
                pair.set(seat, outputs[seat])
            elif draw.random() < 0.05:
                its = [draw.randrange(VOCAB) if draw.random() < 0.3 else 70 for _ in range(3)]
                outputs[seat].append(its[0])
                pair.do("fork", seat, its)
    for seat in range(SEATS):
        pair.do("clear", seat)
    return complete


@pytest.mark.parametrize("proposes", [False, True])
def test_schemas_are_held_as_by_the_python_class(grammars, proposes):
    complete = 0
    for number, schema in enumerate(list(SCHEMAS.values())[proposes::2]):
        grammar = compiled(grammars, json=schema, disable_any_whitespace=bool(number % 2))
        assert grammar.native is not None
        complete += fuzz(grammar, number, proposes, 12)
    assert complete > 20


@pytest.mark.parametrize(
    "form",
    [
        {"regex": r"(wort|word|[a-z]{2,9}) \d+(, [0-9a-f]{8})*"},
        {"choice": ["red", "green", "greenish", "grün"]},
        {"json_object": True},
        {"grammar": 'start: "<" name ">" start* "</" name ">"\nname: /[a-zäöü]+/'},
    ],
    ids=lambda form: next(iter(form)),
)
def test_other_forms_are_held_as_by_the_python_class(grammars, form):
    grammar = compiled(grammars, **form)
    assert grammar.native is not None
    for seed in range(3):
        fuzz(grammar, seed, bool(seed % 2), 25)


def test_a_matcher_that_reaches_its_own_limit_leaves_the_verdict_to_python(in_time, monkeypatch):
    monkeypatch.setattr(native_matchers, "MOST_STATES", 120)
    grammar = compiled(compiler(), regex=r"(a|b)*a(a|b){7}c")
    assert grammar.native is not None
    pair, draw = Pair(grammar, True), random.Random(0)
    for seat in range(SEATS):
        pair.set(seat, [])
    letters = 70, 71  # a, b
    for _ in range(60):
        tokens = np.array([draw.choice(letters) for _ in range(SEATS)])
        assert pair.do("advance", np.arange(SEATS), tokens) == []
        pair.compare()
    assert len(pair.both[0]._held) > 0  # Python took over
    assert not any(pair.both[0].failure(seat) for seat in range(SEATS))


def test_no_matcher_outlives_its_grammar(in_time, monkeypatch):
    gc.collect()
    before, made = Matcher.alive, compiler()
    grammar = compiled(made, json=SCHEMAS[next(iter(SCHEMAS))])
    masks = GrammarMasks(SEATS, VOCAB, False)
    for _ in range(3):
        for seat in range(SEATS):
            masks.set(seat, row_of(grammar, []))
        masks.begin()
        masks.fork(0, [70, 70, 70])
        most = Matcher.alive
        for seat in range(SEATS - 1):
            masks.clear(seat)
    assert Matcher.alive == most  # they are used again
    other, native = compiled(made, json={"type": "null"}), grammar.native
    assert native is not None
    monkeypatch.setattr(native_matchers, "MOST_IDLE", len(native.tokenizer.idle))
    masks.set(0, row_of(other, []))
    most = Matcher.alive
    masks.clear(0)
    assert Matcher.alive == most - 1  # the oldest of the other grammar is gone
    del masks, grammar, other, native, made
    gc.collect()
    assert Matcher.alive == before


def test_where_the_tokenizer_fails_python_decides(in_time):
    class Panic(BaseException):
        pass

    def fail(text: bytes) -> list[int]:
        raise Panic(text)

    made = compiler()
    schema = {"enum": ["abcdef", "uvwxyz"]}
    grammar = compiled(made, json=schema, disable_any_whitespace=True)
    assert grammar.native is not None and made._native is not None
    pair, python = Pair(grammar, True), made._native._python
    for seat in range(SEATS):
        pair.set(seat, [])
    pair.compare()
    made._native._python = SimpleNamespace(tokenize_bytes=fail)
    for text in (b'"', b"a"):
        [token] = python.tokenize_bytes(text)
        pair.do("advance", np.arange(SEATS), np.array([token] * SEATS))
        pair.compare()
    assert sorted(pair.both[0]._held) == list(range(SEATS))
    assert not any(pair.both[0].failure(seat) for seat in range(SEATS))
    assert compiled(made, json={"const": "Lange Gasse"}).native is None


def test_where_there_can_be_no_native_matcher_python_holds_the_grammar(in_time, monkeypatch):
    gc.collect()
    form = {"json": {"type": "integer"}}
    grammar = compiled(compiler(), **form)
    monkeypatch.setattr(native_matchers, "MOST_MATCHERS", Matcher.alive + 1)
    masks = GrammarMasks(2, VOCAB, False)
    for seat in range(2):
        masks.set(seat, row_of(grammar, []))
    assert len(masks._native) == 1 and len(masks._held) == 1
    one, other = masks.masks(np.arange(2))
    assert one.any() and (one == other).all()
    monkeypatch.setattr(native_matchers, "LONGEST_COPY_S", 0)
    assert compiled(compiler(), **form).native is None
    monkeypatch.setattr(grammar_compiler, "LONGEST_TWICE_S", 0)
    assert compiled(compiler(), **form).native is None
    monkeypatch.setattr(native_matchers, "interface", lambda: None)
    assert compiled(compiler(), **form).native is None


def test_the_installed_version_is_one_whose_structs_are_known():
    from importlib.metadata import version

    known = version("llguidance").startswith(native_matchers.VERSIONS)
    assert (native_matchers.interface() is not None) == known
