"""Draws that one kernel makes on a CPU, with grammars and without."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from engine.placeholders import NO_TOKEN
from engine.worker.sampling.sample_step import SampleStep
from engine.worker.sampling.sampler import Sampler
from engine.worker.sampling.sampling_table import SamplingTable
from engine.worker.seats import Seats
from tests.worker.worker_kit import new_row

CPU, VOCAB = torch.device("cpu"), 70


class Matcher:
    """Allow the even tokens, and force no others than `run`, which it has read."""

    def __init__(self, run: list[int]):
        self.run = run

    def compute_ff_tokens(self) -> list[int]:
        return self.run

    def consume_tokens(self, tokens: list[int]) -> None: ...

    def is_error(self) -> bool:
        return False

    def unsafe_compute_mask_ptr(self, place: int, size: int) -> None:
        import ctypes

        ctypes.memset(place, 0x55, size)


class Grammar:
    native = None

    def __init__(self, run: list[int]):
        self.run = run

    def matcher(self, tokens: list[int]) -> Matcher:
        return Matcher(self.run)


def table_of(*asked: dict) -> SamplingTable:
    """A table with one sequence a seat. `run`: what its grammar forces; without, it has none."""
    table = SamplingTable(len(asked), VOCAB, CPU)
    if table.draw_allowed is None:
        pytest.skip("no kernels could be built here")
    table.grammars.proposes = True
    for seat, one in enumerate(asked):
        params = {"seed": seat + 3, "temperature": 0.9, **one}
        run = params.pop("run", None)
        row = new_row([1, 2, 3], 2, **params)
        row.grammar = None if run is None else Grammar(run)
        table.set(seat, row)
    return table


def test_only_those_with_nothing_but_a_grammar_are_held():
    table = table_of(
        {"run": []}, {}, {"run": [], "bad_words_token_ids": [[5]]}, {"run": [], "logprobs": 1},
        {"run": [], "presence_penalty": 1.0}, {"run": [4], "top_p": 0.5, "top_k": 3},
        {"temperature": 0.0}, {"run": [], "temperature": 0.0},
    )  # fmt: skip
    every = np.arange(8)
    simple = table.needs_kernel(every)
    assert simple.tolist() == [True, True, False, False, False, True, True, True]
    assert table.needs_kernel(every[2:5]) is None and table.needs_kernel(every[6:7]) is None
    assert table.masked.tolist() == [True, False, True, True, True, True, False, True]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("cuts", [{}, {"top_k": 4, "top_p": 0.9, "min_p": 0.05}])
def test_a_draw_is_that_of_masked_logits(temperature, cuts):
    """A request whose draws are recorded, or which wants log-probabilities, has these."""
    asked = {"run": [], "temperature": temperature, **cuts}
    table = table_of(asked, {"temperature": temperature}, asked, asked)
    sampler, seats = Sampler(table), np.arange(4)
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    for position in range(3, 60):
        positions = np.full(4, position)
        its = seats[[0, 2, 3]]
        found = sampler.draw_simple(logits, its, its, positions[its], None)
        metadata = table.metadata(seats)
        adjusted = sampler.adjust(logits.clone(), metadata, np.zeros((4, 80), np.int32), positions)
        masked = sampler.draw(adjusted, metadata, positions)
        assert found.tolist() == masked[its].tolist()
        assert all(token % 2 == 0 for token in found.tolist())
        # and the one without a grammar draws as alone
        free, its = table.metadata(seats[1:2]), positions[1:2]
        alone = sampler.draw(logits[1:2], free, its)
        assert masked[1] == alone[0]
        if temperature:
            every = sampler.draw_simple(logits, None, seats, positions, None)
            assert every.tolist() == masked.tolist()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_forced_tokens_are_taken_and_what_follows_them_is_drawn(broken):
    table = table_of({"run": [41, 43]}, {"run": [45]})
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(2))
    logits[:, 47] = broken  # of a token that is forbidden
    logits[1, 43] = broken
    seats, ahead = np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1])
    found = Sampler(table).draw_simple(logits, None, seats, 3 + ahead, ahead).tolist()
    assert found[:2] == [41, NO_TOKEN] and found[3] == 45
    alone = Sampler(table_of({"run": []}, {"run": []}))
    for draw, seat, position in ((2, 0, 5), (4, 1, 4)):
        line, its = logits[draw : draw + 1], np.array([seat])
        assert found[draw] == int(alone.draw_simple(line, None, its, np.array([position]), None))


def test_one_call_draws_for_rows_of_every_kind():
    """Sampled ones, one with a grammar, a greedy one; only one with rules is drawn by itself."""
    table = table_of(
        {}, {"run": []}, {"temperature": 0.0}, {"top_k": 3}, {"logprobs": 1}, {"min_p": 0.1}
    )
    kernel, calls = table.draw_allowed, []

    def counted(logits: torch.Tensor, draws: torch.Tensor, *rest: object) -> torch.Tensor:
        calls.append(draws[1].tolist())
        return kernel(logits, draws, *rest)

    table.draw_allowed = counted
    logits = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(4))
    seats, positions = np.arange(6), np.full(6, 3)
    step = SampleStep(Seats(6, 80, 16), table)
    for seat in range(6):
        step.seats.put(str(seat), new_row([1, 2, 3], 2))
    simple = table.needs_kernel(seats)
    together, _ = step._draw_simple(logits.clone(), simple, seats, positions, None)
    assert calls == [[0, 1, 2, 3, 5], [4]]
    alone = [
        step.sampler.draw_simple(logits, seats[i : i + 1], seats[i : i + 1], positions[:1], None)
        for i in range(6)
    ]
    assert together.tolist() == [int(token) for token in alone]
    assert together[2] == logits[2].argmax() and together[1] % 2 == 0
