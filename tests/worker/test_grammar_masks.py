"""Masks are those of llguidance at every state, in forced runs and ahead of time too."""

from __future__ import annotations

import queue
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
from engine.worker.sampling.grammar_compiler import CompiledGrammar, GrammarCompiler, GrammarError
from engine.worker.sampling.grammar_masks import GrammarMasks
from tests.support.schemas import SCHEMAS

VOCAB = 2048
WORDS = VOCAB // 32
EOS = 0
FORCED = {"const": {"street": "Lange Gasse", "city": "Wien"}}
COMPACT = {"disable_any_whitespace": True}


@pytest.fixture(scope="module", params=["python", "native"])
def grammars(request) -> GrammarCompiler:
    """Make the compiler for matchers of llguidance's Python class, or for native ones too."""
    ops = cpu.native()
    if request.param == "native" and ops is None:
        pytest.skip(cpu.why())
    made = GrammarCompiler(VOCAB, ops.grammars if request.param == "native" else None)
    source = (Path(POCKET_MODEL) / "tokenizer.json").read_text()
    made.set_tokenizer(GrammarTokenizer(tokenizer_json=source, eos_token_ids=[EOS]))
    return made


def compiled(grammars: GrammarCompiler, schema: Any, **options: Any) -> CompiledGrammar:
    form = StructuredOutputsParams(json=schema, **options)
    return grammars.compile(checked_grammar(form, {}).grammar)


def row_of(grammar: Any, output: list[int]) -> Any:
    return SimpleNamespace(grammar=grammar, token_ids=[7, *output], num_prompt_tokens=1)


def holding(grammar: Any, *outputs: list[int], ahead: bool = False) -> GrammarMasks:
    """Masks of as many seats as there are outputs, each with its sequence."""
    masks = GrammarMasks(len(outputs), VOCAB, ahead)
    for seat, output in enumerate(outputs):
        masks.set(seat, row_of(grammar, output))
    return masks


def advance(masks: GrammarMasks, seat: int, tokens: list[int]) -> list[bool]:
    """Read tokens for one seat; return for each whether the text is complete with it."""
    found = masks.advance(np.array([seat] * len(tokens)), np.array(tokens))
    return found[0].complete if found else [False] * len(tokens)


def states(grammar: CompiledGrammar, seed: int, most: int = 60) -> list[tuple[np.ndarray, int]]:
    """Walk through a grammar at random: (mask, token drawn) of each state, with a mask for each."""
    draw, matcher, found = random.Random(seed), grammar.matcher([]), []
    while len(found) < most and not matcher.is_stopped():
        mask = np.zeros(WORDS, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        found.append((mask, draw.choice(np.flatnonzero(bits).tolist())))
        matcher.consume_token(found[-1][1])
    return found


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("options", [{}, COMPACT], ids=["spaces", "compact"])
def test_masks_and_ends_are_those_of_the_matcher(grammars, ahead, options):
    """Three sequences at a time, one of which comes back after a preemption in each step."""
    alone = 0
    for name, schema in SCHEMAS.items():
        grammar = compiled(grammars, schema, **options)
        walks = [states(grammar, seed) for seed in range(3)]
        masks = holding(grammar, [], [], [], ahead=ahead)
        drawn: list[list[int]] = [[], [], []]
        for step in range(max(map(len, walks))):
            seats = [seat for seat in range(3) if step < len(walks[seat])]
            back = seats[step % len(seats)]
            masks.clear(back)
            masks.set(back, row_of(grammar, drawn[back]))
            found = masks.masks(np.array(seats))
            for seat, mask in zip(seats, found):
                wanted, token = walks[seat][step]
                assert (mask == wanted).all(), (name, step, drawn[seat])
                alone += int(np.unpackbits(mask.view(np.uint8)).sum() == 1)
                drawn[seat].append(token)
                ended = grammar.matcher(drawn[seat]).is_stopped()
                assert advance(masks, seat, [token]) == [ended], (name, step)
            masks.begin()
    assert alone > 300  # there were forced runs


def test_a_forced_run_is_asked_for_once(grammars):
    grammar = compiled(grammars, FORCED, **COMPACT)
    asked: list[str] = []

    class Counting:
        def __init__(self, matcher: Any):
            self.matcher = matcher

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self.matcher, name)

    walk = states(grammar, 0)
    counting = SimpleNamespace(
        matcher=lambda output: Counting(grammar.matcher(output)), native=None
    )
    masks = holding(counting, [])
    for wanted, token in walk:
        assert (masks.masks(np.array([0]))[0] == wanted).all()
        advance(masks, 0, [token])
    runs = asked.count("compute_ff_tokens")
    assert asked.count("consume_tokens") == runs < len(walk) / 3
    assert asked.count("unsafe_compute_mask_ptr") == 0


def test_siblings_fork_within_a_run_and_at_its_end(grammars):
    grammar = compiled(grammars, {"enum": [True, False]})
    [(_, token), *_] = states(grammar, 0)
    masks = holding(grammar, [])
    masks.masks(np.array([0]))
    other = next(t for t in (states(grammar, seed)[0][1] for seed in range(20)) if t != token)
    for tokens in ([token, other], [other, token, token]):
        wanted = [grammar.matcher([one]).is_stopped() for one in tokens]
        fresh = holding(grammar, [])
        fresh.masks(np.array([0]))
        assert fresh.fork(0, tokens) == wanted
    long = compiled(grammars, FORCED, **COMPACT)
    walk = [token for _, token in states(long, 0)]
    masks = holding(long, walk[:2])
    masks.masks(np.array([0]))
    advance(masks, 0, [walk[2]])
    masks.masks(np.array([0]))
    assert masks.fork(0, [walk[3], walk[3]]) == [False, False]
    assert (masks.masks(np.array([0]))[0] == states(long, 0)[4][0]).all()


@pytest.mark.parametrize("place", [0, 3])
def test_a_token_that_the_grammar_forbids_fails_its_sequence_alone(grammars, place):
    """A sampler of someone's own may draw one; nothing may follow it, and the other goes on."""
    grammar = compiled(grammars, FORCED, **COMPACT)
    walk = states(grammar, 0)
    before = [token for _, token in walk[:place]]
    masks = holding(grammar, before, before)
    wrong = next(t for t in range(5, VOCAB) if t != walk[place][1])
    masks.masks(np.array([0, 1]))
    assert advance(masks, 0, [wrong]) == [False]
    advance(masks, 1, [walk[place][1]])
    nothing, other = masks.masks(np.array([0, 1]))
    assert not nothing.any() and (other == walk[place + 1][0]).all()
    assert masks.failure(0).startswith("its grammar failed: ") and not masks.failure(1)


def test_where_nothing_was_drawn_nothing_is_read(grammars):
    grammar = compiled(grammars, FORCED, **COMPACT)
    masks = holding(grammar, [])
    (first, _), *_ = states(grammar, 0)
    masks.masks(np.array([0]))
    assert advance(masks, 0, [NO_TOKEN]) == [False] and masks.failure(0) == ""
    assert (masks.masks(np.array([0]))[0] == first).all()


def test_a_text_that_is_complete_reads_no_more(grammars):
    grammar = compiled(grammars, {"type": "null"})
    walk = [token for _, token in states(grammar, 0)]
    masks = holding(grammar, walk[:-1])
    masks.masks(np.array([0]))
    assert advance(masks, 0, [walk[-1]]) == [True]
    assert advance(masks, 0, [EOS]) == [False] and masks.failure(0) == ""


def test_masks_of_a_run_are_known_ahead(grammars):
    """What follows proposed tokens of a run, from each place of it, beside one without."""
    grammar = compiled(grammars, FORCED, **COMPACT)
    walk = states(grammar, 0)
    tokens = [token for _, token in walk]
    several = 0
    for place in range(len(walk) - 1):
        masks = holding(grammar, tokens[:place], [])
        forced = masks.forced(0)
        assert forced == tokens[place : place + len(forced)]
        several += len(forced) > 1
        seats, ahead = np.array([0] * (len(forced) + 1) + [1]), [*range(len(forced) + 1), 0]
        found = masks.masks(seats, np.array(ahead))
        for count, mask in enumerate(found[:-1]):
            assert (mask == walk[place + count][0]).all()
        assert (found[-1] == walk[0][0]).all()
        assert (masks.masks(np.array([0]))[0] == walk[place][0]).all()  # they aren't kept
    assert several > 3
    assert holding(grammar, tokens[:-1]).forced(0) == []  # the last may end the text


@pytest.mark.parametrize(
    "failure", [RuntimeError("odd"), MemoryError("full"), BaseException("a panic")]
)
def test_one_grammar_that_fails_in_any_way_costs_no_other(grammars, monkeypatch, failure):
    """One thread compiles for all: if it ended, all later requests would wait for ever."""
    made: queue.SimpleQueue[Any] = queue.SimpleQueue()
    given = checked_grammar(StructuredOutputsParams(regex=f"a|{failure}"), {}).grammar

    def fail(grammar: str) -> None:
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(grammars, "_compile", fail)
        grammars.compile_soon(given, made.put)
        refused = made.get(timeout=10)
    assert isinstance(refused, GrammarError) and type(failure).__name__ in str(refused)
    grammars.compile_soon(given, made.put)
    assert isinstance(made.get(timeout=10), CompiledGrammar)
