"""The quality table: what is known of a peer without whole distributions, and what isn't."""

from __future__ import annotations

import pytest
import torch

from benchmarks import quality


def test_places_of_a_peer_are_counted_and_the_rest_is_unknown():
    expected = [torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[2.0, 1.0]])]
    means = quality.of_places([[(1, -0.5), (0, -1.0)], [(0, -0.25)]], expected)
    assert means["changed"] == pytest.approx(1 / 3) and means["positions"] == 3
    assert means["nll"] == pytest.approx(1.75 / 3) and means["kl"] is None
    where = {"cpu": "a CPU", "threads": 2, "torch": "2", "transformers": "5", "date": "today"}
    row = {"model": "m", "way": quality.VLLM, **means}
    assert "| m | vLLM bf16 | 0.58333 | 33.33% | – | – |" in quality.markdown([row], where)


def test_a_way_equal_to_fp32_changes_nothing():
    logits = torch.tensor([[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]])
    score = quality.Score()
    score.add(logits, logits, torch.tensor([2, 0]))
    means = score.means()
    assert (means["changed"], means["kl"], means["tied"]) == (0.0, 0.0, 0.5)
