"""Log-probabilities against torch.log_softmax and a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.worker.sampling.logprobs import most_probable, token_logprobs


def ranked(row: torch.Tensor) -> list[int]:
    values = row.tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(0, 20),
    st.sampled_from([None, 0.5, 4.0]),
    st.integers(0, 1000),
)
def test_against_sorting(vocab, rows, count, grid, seed):
    """Logits are rounded to a grid, so that there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 3
    if grid:
        logits = (logits / grid).round() * grid
    tokens = torch.randint(0, vocab, (rows,), generator=generator).numpy()
    counts = [max(0, count - i) for i in range(rows)]
    expected = torch.log_softmax(logits, -1)
    for i, entry in enumerate(token_logprobs(logits, tokens, counts)):
        order = ranked(logits[i])
        assert entry.token_id == tokens[i]
        assert entry.logprob == expected[i, tokens[i]].item()
        assert entry.rank == order.index(tokens[i]) + 1
        assert entry.top_ids == order[: counts[i]]
        assert entry.top_logprobs == expected[i, order[: counts[i]]].tolist()


def test_the_drawn_tokens_number_is_that_of_the_list_bit_for_bit():
    logits = torch.randn(50, 3_000).bfloat16().float() * 4
    tokens = logits.argmax(-1).numpy()
    for entry in token_logprobs(logits, tokens, [5] * 50):
        assert entry.rank == 1 and entry.top_ids[0] == entry.token_id
        assert entry.logprob == entry.top_logprobs[0] == max(entry.top_logprobs)


def test_more_ties_than_candidates():
    """All tokens equal: the lowest ids, though topk may name any."""
    assert most_probable(torch.zeros(2, 10_000), 5).tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("count", [0, 3])
def test_no_rows(count):
    assert token_logprobs(torch.zeros(0, 7), np.zeros(0, np.int64), []) == []
    assert most_probable(torch.zeros(2, 7), 0).shape == (2, 0)


def test_named_tokens_stand_in_place_of_the_most_probable():
    torch.manual_seed(3)
    logits = torch.randn(3, 500)
    expected = torch.log_softmax(logits, -1)
    tokens = np.array([7, 8, 9])
    counts = [2, 0, 4]
    plain = token_logprobs(logits, tokens, counts)
    named = token_logprobs(logits, tokens, counts, {1: [400, 8, 3]})
    assert (named[0], named[2]) == (plain[0], plain[2]) and counts == [2, 0, 4]
    assert named[1].top_ids == [400, 8, 3]
    assert named[1].top_logprobs == expected[1, [400, 8, 3]].tolist()
    assert (named[1].logprob, named[1].rank) == (plain[1].logprob, plain[1].rank)


def test_a_row_that_wants_all_changes_nothing_for_the_others():
    torch.manual_seed(4)
    logits = torch.randn(3, 1_000)
    tokens = np.array([1, 2, 3])
    few = token_logprobs(logits, tokens, [1, 2, 0], {2: [5]})
    mixed = token_logprobs(logits, tokens, [1, 1_000, 0], {2: [5]})
    assert (mixed[0], mixed[2]) == (few[0], few[2])
    assert mixed[1].top_ids[:2] == few[1].top_ids and len(mixed[1].top_ids) == 1_000
    assert sorted(mixed[1].top_ids) == list(range(1_000))
