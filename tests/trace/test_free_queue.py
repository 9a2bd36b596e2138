"""The free queue is an ordered dict whose untouched beginning costs nothing."""

from __future__ import annotations

import random
import tracemalloc
from collections import OrderedDict

import pytest

from engine.trace.free_queue import FreeQueue


@pytest.mark.parametrize("seed", range(30))
def test_it_orders_as_an_ordered_dict(seed):
    draw = random.Random(seed)
    size = draw.randrange(12)
    queue, plain = FreeQueue(size), OrderedDict.fromkeys(range(size))
    if draw.random() < 0.3:
        queue, plain = FreeQueue.of([3, 1, 2]), OrderedDict.fromkeys([3, 1, 2])
    out: list[int] = []
    within = draw.random() < 0.5  # whether blocks are also taken from within
    for _ in range(200):
        kind = draw.choice(["pop", "append", "append_left", *["remove", "move"] * within])
        if kind == "pop":
            if plain:
                out.append(queue.pop_left())
                assert out[-1] == plain.popitem(last=False)[0]
            else:
                with pytest.raises(KeyError):
                    queue.pop_left()
        elif kind in ("remove", "move"):
            block = draw.choice([*plain, 99])
            if block == 99:
                with pytest.raises(KeyError):
                    queue.remove(block)
            elif kind == "remove":
                queue.remove(block)
                del plain[block]
                out.append(block)
            else:
                queue.move_to_end(block)
                plain.move_to_end(block)
        elif out:
            block = out.pop(draw.randrange(len(out)))
            plain[block] = None
            if kind == "append":
                queue.append(block)
            else:
                queue.append_left(block)
                plain.move_to_end(block, last=False)
        assert list(queue) == list(plain) and len(queue) == len(plain)
        assert all((block in queue) == (block in plain) for block in range(-1, 14))
        copied = queue.copy()
        assert list(copied) == list(plain)
        if plain:
            copied.pop_left()
            assert list(queue) == list(plain), "a copy is independent"


def test_blocks_that_were_never_taken_cost_no_memory():
    tracemalloc.start()
    try:
        queue = FreeQueue(10**6)
        taken = [queue.pop_left() for _ in range(100)]
        for block in taken:
            queue.append(block)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        assert len(queue) == 10**6 and queue.pop_left() == 100
    finally:
        tracemalloc.stop()
