"""Check step 5: a step's rows, in cases that are written out and in random ones, by the rules."""

from __future__ import annotations

import copy
import random
from types import ModuleType
from typing import Any

from course.exercise import Wrong

Given = tuple[list[tuple[int, int]], list[int], int, int, int, int]
"""(known, computed) of each running sequence, known of each waiting one, and the four limits."""


def _planned(module: ModuleType, given: Given) -> tuple[dict[str, int], dict[str, Any], str]:
    """Return the rows, all sequences by name, and words for what was given."""
    had, queue, budget, seats, blocks, size = given
    running = [module.Sequence(f"r{i}", known, done) for i, (known, done) in enumerate(had)]
    waiting = [module.Sequence(f"w{i}", known) for i, known in enumerate(queue)]
    before = copy.deepcopy((running, waiting))
    answer = module.plan(running, waiting, budget, seats, blocks, size)
    words = (
        f"running {[f'{s.name}: {s.computed} of {s.known}' for s in running]}, waiting"
        f" {[f'{s.name}: {s.known}' for s in waiting]}, budget {budget}, {seats} seats,"
        f" {blocks} free blocks of {size}"
    )
    if (running, waiting) != before:
        raise Wrong(f"plan changed what it was given ({words})")
    rows = [(str(name), int(count)) for name, count in answer]
    if len(dict(rows)) < len(rows) or any(count < 1 for _name, count in rows):
        raise Wrong(f"{rows} has a sequence twice, or a row without tokens ({words})")
    return dict(rows), {s.name: s for s in (*running, *waiting)}, words


def _expect(module: ModuleType, given: Given, expected: list[tuple[str, int]]) -> None:
    rows, _sequences, words = _planned(module, given)
    if list(rows.items()) != expected:
        raise Wrong(f"the rows are {list(rows.items())}, not {expected} ({words})")


def running(module: ModuleType) -> None:
    """Give running sequences what they lack, in order, within the budget."""
    _expect(module, ([(9, 8), (21, 20)], [], 16, 4, 8, 4), [("r0", 1), ("r1", 1)])
    _expect(module, ([(9, 8), (40, 16)], [], 16, 4, 8, 4), [("r0", 1), ("r1", 15)])
    _expect(module, ([(40, 16), (9, 8)], [], 16, 4, 8, 4), [("r0", 16)])


def chunks(module: ModuleType) -> None:
    """Give a waiting prompt what is left of the budget, as a chunk if it is longer."""
    _expect(module, ([(9, 8)], [30], 16, 4, 8, 4), [("r0", 1), ("w0", 15)])
    _expect(module, ([], [6, 6, 6], 16, 4, 8, 4), [("w0", 6), ("w1", 6), ("w2", 4)])
    _expect(module, ([(40, 16)], [6], 16, 4, 8, 4), [("r0", 16)])


def seats(module: ModuleType) -> None:
    """Give each sequence a seat; the queue waits for one that is free."""
    _expect(module, ([(9, 8)], [6, 6], 16, 2, 8, 4), [("r0", 1), ("w0", 6)])


def blocks(module: ModuleType) -> None:
    """Count blocks for all tokens of a prompt; what is admitted before it takes some."""
    _expect(module, ([], [30], 16, 4, 7, 4), [])
    _expect(module, ([], [30], 16, 4, 8, 4), [("w0", 16)])
    _expect(module, ([], [6, 9], 16, 4, 4, 4), [("w0", 6)])


def queue(module: ModuleType) -> None:
    """Keep the queue strict: nobody passes the first one that can't be admitted."""
    _expect(module, ([], [30, 2], 16, 4, 4, 4), [])


def anything(module: ModuleType) -> None:
    """Follow the rules in a thousand random cases."""
    draw = random.Random(2)
    for _ in range(1000):
        had = [(known, draw.randint(0, known - 1)) for known in
               (draw.randint(1, 12) for _ in range(draw.randint(0, 3)))]  # fmt: skip
        given: Given = (
            had, [draw.randint(1, 12) for _ in range(draw.randint(0, 4))],
            draw.randint(1, 20), draw.randint(max(1, len(had)), 5), draw.randint(0, 8), 4,
        )  # fmt: skip
        _judge(module, given)


def _judge(module: ModuleType, given: Given) -> None:
    had, _queue, budget, seats, blocks, size = given
    rows, sequences, words = _planned(module, given)
    seats -= len(had)
    expected: dict[str, int] = {}
    for name, sequence in sequences.items():
        if name.startswith("w"):
            need = -(-sequence.known // size)
            if not budget or not seats or need > blocks:
                break
            seats, blocks = seats - 1, blocks - need
        if count := min(sequence.known - sequence.computed, budget):
            expected[name] = count
            budget -= count
    if list(rows.items()) != list(expected.items()):
        raise Wrong(f"the rows are {list(rows.items())}, not {list(expected.items())} ({words})")


PARTS = (running, chunks, seats, blocks, queue, anything)
