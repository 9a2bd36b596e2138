"""Draws, of allowed tokens or of all, against the definition in plain torch, in every variant."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.placeholders import NO_TOKEN
from engine.worker.sampling.exact_draw import Cuts, cut, integer_weights
from engine.worker.sampling.philox import random_words

NEAR = 2048  # of 2^30: what exp() may round otherwise, added up over a row

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def bits(allowed: torch.Tensor) -> torch.Tensor:
    """Make masks of bools. bool [rows, width] → int32 [rows, words]"""
    rows, width = allowed.shape
    padded = np.zeros((rows, -(-width // 32) * 32), bool)
    padded[:, :width] = allowed.numpy()
    padded[:, width:] = True  # bits beyond the vocabulary mean nothing
    packed = np.packbits(padded, axis=-1, bitorder="little")
    return torch.from_numpy(packed.view(np.int32))


class Asked:
    """Hold what some draws ask for. Seats, lines of logits and draws are all in another order."""

    def __init__(self, seed: int, count: int, width: int, share: float, coarse: bool):
        self.generator = generator = torch.Generator().manual_seed(seed)
        self.count, self.width = count, width
        self.logits = torch.randn(count + 1, width, generator=generator) * 3
        if coarse:  # many are equal
            self.logits = self.logits.round()
        self.allowed = torch.rand(count + 2, width, generator=generator) < share
        self.allowed[:, seed % width] = True
        self.lines = torch.randperm(count + 1, generator=generator)[:count]
        self.seats = torch.randperm(count + 2, generator=generator)[:count]
        self.seeds = torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator)
        self.positions = torch.randint(0, 2**34, (count,), generator=generator)
        self.only = torch.full((count,), NO_TOKEN)
        self.parameters = torch.tensor([[0.7, 1.0, 0.0, 9.0]] * (count + 2), dtype=torch.float64)
        self.top_k = torch.full((count + 2,), width)

    def draw(
        self, ops, logits: torch.Tensor | None = None, masked: bool | torch.Tensor = True
    ) -> list[int]:
        """Draw. masked: whether there are masks, or bool [draws], which draws have one."""
        which = torch.where(torch.as_tensor(masked), self.seats, -1)
        draws = torch.stack([self.lines, self.seats, self.seeds, self.positions, self.only, which])
        masks = None if masked is False else bits(self.allowed)
        logits = self.logits if logits is None else logits
        found = ops.draw_allowed(logits, draws, masks, self.parameters, self.top_k)
        assert found.dtype is torch.int64 and found.shape == (self.count,)
        return found.tolist()

    def masked_logits(self) -> torch.Tensor:
        """Return the logits with minus infinity where a draw's line forbids a token."""
        logits = self.logits.clone()
        for line, seat in zip(self.lines, self.seats):
            logits[line, ~self.allowed[seat]] = -math.inf
        return logits

    def check(self, found: list[int]) -> None:
        """Compare with the definition; sums may differ by as much as exp() is rounded."""
        logits = self.masked_logits()
        words = random_words(self.seeds, self.positions)
        for token, line, seat, word in zip(found, self.lines, self.seats, words.tolist()):
            row, (heat, top_p, min_p, _) = logits[line], self.parameters[seat].tolist()
            if heat == 0:
                assert token == int((row == row.max()).nonzero()[0, 0])
                continue
            cuts = Cuts(self.top_k[seat][None], torch.tensor([top_p]), torch.tensor([min_p]))
            cuts = Cuts(cuts.top_k, cuts.top_p.double(), cuts.min_p.double())
            kept = cut(integer_weights((row / torch.tensor(heat))[None]), cuts)[0].long()
            ends = kept.cumsum(0)
            target = word * int(ends[-1]) >> 32
            begins, end = int(ends[token] - kept[token]), int(ends[token])
            assert kept[token] > 0 and begins - NEAR <= target < end + NEAR


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 2**20), st.integers(1, 5), st.sampled_from([1, 5, 31, 32, 33, 77, 300, 9000]),
    st.sampled_from([0.0, 0.01, 0.5, 1.0]), st.booleans(),
)  # fmt: skip
def test_the_token_is_the_definitions(ops, seed, count, width, share, coarse):
    asked = Asked(seed, count, width, share, coarse)
    for seat in range(count + 2):
        which = (seed + seat) % 6
        heat = (0.0, 1.0, 0.4, 2.5, 1.0, 0.7)[which]
        top_p, min_p = (1.0, 1.0, 0.9, 0.3, 1.0, 0.97)[which], (0, 0, 0, 0.1, 0.3, 0)[which]
        asked.parameters[seat, :3] = torch.tensor([heat, top_p, min_p])
        asked.top_k[seat] = (width, width, min(width, 3), width, min(width, 40), width)[which]
    found = asked.draw(ops)
    asked.check(found)
    # what is forbidden by minus infinity gives the same tokens as what a mask forbids
    assert asked.draw(ops, asked.masked_logits(), masked=False) == found


def test_draws_with_a_mask_and_draws_without_one_share_a_call(ops):
    asked = Asked(11, 6, 500, 0.1, False)
    masked = torch.tensor([True, False] * 3)
    found = asked.draw(ops, masked=masked)
    held, free = asked.draw(ops), asked.draw(ops, masked=False)
    assert found == [free[place] if place % 2 else held[place] for place in range(6)]
    for place, (token, seat) in enumerate(zip(found, asked.seats)):
        assert place % 2 or asked.allowed[seat, token]
    asked.allowed[:] = True
    asked.check(free)


def test_a_draw_is_the_same_alone_and_among_others_on_several_threads(ops):
    asked = Asked(5, 12, 60_000, 0.8, False)
    found = asked.draw(ops)
    asked.check(found)
    for place in range(0, asked.count, 3):
        alone = Asked(5, 12, 60_000, 0.8, False)
        for name in ("lines", "seats", "seeds", "positions", "only"):
            setattr(alone, name, getattr(alone, name)[place : place + 1])
        alone.count = 1
        assert alone.draw(ops) == found[place : place + 1]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("heat", [0.0, 0.7])
def test_allowed_logits_that_are_not_finite_give_no_token(ops, broken, heat):
    """One NaN among them, an infinite greatest one, or no number at all."""
    asked = Asked(3, 4, 100, 0.5, False)
    asked.parameters[:, 0] = heat
    asked.logits[:] = 0.0
    first, second, third, _ = asked.lines.tolist()
    allowed = [int(asked.allowed[seat].nonzero()[-1, 0]) for seat in asked.seats]
    forbidden = [int((~asked.allowed[seat]).nonzero()[-1, 0]) for seat in asked.seats]
    asked.logits[first, forbidden[0]] = broken
    asked.logits[second, allowed[1]] = broken
    asked.logits[third] = broken
    asked.allowed[asked.seats[3]] = False  # a failed matcher allows nothing
    found = asked.draw(ops)
    assert found[0] >= 0 and found[2:] == [NO_TOKEN] * 2
    assert found[1] >= 0 if broken == -math.inf else found[1] == NO_TOKEN


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_known_is_taken_if_its_logit_is_finite(ops, broken):
    asked = Asked(3, 3, 100, 0.5, False)
    asked.only = torch.tensor([42, 43, NO_TOKEN])
    asked.allowed[asked.seats[0]] = False  # its mask is of another state
    asked.logits[asked.lines[0], 41] = broken
    asked.logits[asked.lines[1], 43] = broken
    found = asked.draw(ops)
    assert found[:2] == [42, NO_TOKEN] and found[2] >= 0
