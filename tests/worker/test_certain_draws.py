"""Tokens that are taken without a draw: which these are, and that broken logits give none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.placeholders import NO_TOKEN
from engine.worker.sampling.certain_draws import CertainDraws, certain_draws


def table(only: list[int], with_rules: tuple[int, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(
        grammars=SimpleNamespace(only=lambda seats, ahead: only),
        takes_certain=lambda seat: seat not in with_rules,
    )


def test_each_sequence_draws_once_in_the_order_of_their_first_rows():
    seats, ahead = np.array([5, 2, 9, 2, 2, 9]), np.array([0, 0, 0, 1, 2, 1])
    only = [NO_TOKEN, 71, 72, 73, NO_TOKEN, 74]
    found = certain_draws(table(only), seats, ahead)
    assert dict(zip(found.places.tolist(), found.tokens.tolist())) == {1: 71, 2: 72, 3: 73}
    assert found.others.tolist() == [0, 4, 5] and found.ahead.tolist() == [0, 2, 1]


def test_sequences_with_rules_draw_all():
    seats, ahead, only = np.array([1, 2, 1, 2]), np.array([0, 0, 1, 1]), [71, 72, 73, 74]
    found = certain_draws(table(only, with_rules=(1,)), seats, ahead)
    assert found.places.tolist() == [1] and sorted(found.others.tolist()) == [0, 2, 3]
    assert certain_draws(table(only, with_rules=(1, 2)), seats, ahead) is None


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_logit_that_is_not_finite_gives_no_token(broken, dtype):
    draws = CertainDraws(np.array([0, 1]), np.array([3, 4]), np.array([2]), np.array([2]))
    logits = torch.zeros(3, 8, dtype=dtype)
    logits[:, 7] = torch.nan  # of tokens that the grammar forbids
    logits[0, 3], logits[1, 4] = broken, 3e38  # whose sum overflows
    first = 3 if broken == 3e38 else NO_TOKEN
    assert draws.join(logits, torch.tensor([6])).tolist() == [first, 4, 6]
