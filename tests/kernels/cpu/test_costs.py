"""What a launch says of itself: one row is no rows."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.cpu.costs import linear_cost


@pytest.mark.parametrize(("rows", "said"), [(1, "1 row: "), (2, "2 rows: "), (64, "64 rows: ")])
def test_rows_are_counted_as_a_person_would(rows, said):
    x, weight = torch.zeros(rows, 8), torch.zeros(4, 8)
    cost = linear_cost(None, x, weight, torch.zeros(rows, 4), "avx2")
    assert cost.why.startswith(said)
    assert cost.flops == 2 * rows * 8 * 4
