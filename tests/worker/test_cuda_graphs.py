"""The ladder of graph sizes. What needs no device of the rest is tested on Triton's interpreter,
in tests/kernels/triton/interpreted_engine.py; capture itself, by `make gpu`."""

from __future__ import annotations

import pytest

from engine.worker.cuda_graphs import ladder


@pytest.mark.parametrize("max_rows", [1, 2, 3, 5, 8, 63, 64, 100, 256, 257, 1000])
def test_a_ladder_ends_at_the_seats_and_wastes_little(max_rows):
    sizes = ladder(max_rows)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_rows
    for rows in range(1, max_rows + 1):
        size = next(size for size in sizes if size >= rows)
        assert size - rows <= max(rows * 3 // 4, 0) or size - rows <= rows // 4 + 3
