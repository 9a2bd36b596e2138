"""The inputs of a captured step with prompts: the step's tokens shared out among rows, and padding
that reads and writes nothing."""

from __future__ import annotations

import numpy as np
import torch

from engine.core.messages import NewBlocks, StepPlan
from engine.worker.graphs.decode_inputs import DecodeInputs
from engine.worker.graphs.prompt_inputs import PromptInputs
from engine.worker.in_flight import DrawnTokens
from engine.worker.seats import Seats
from tests.worker.worker_kit import new_row, row

CPU = torch.device("cpu")
PAGE, SEATS = 4, 3


def make() -> tuple[Seats, PromptInputs]:
    """Sequences a, b and c of 9, 12 and 5 tokens."""
    seats = Seats(SEATS, 40, PAGE)
    for number, (name, length) in enumerate({"a": 9, "b": 12, "c": 5}.items()):
        seats.put(name, new_row([100 * number + i for i in range(length)]))
        seats.update_tables({name: NewBlocks(0, list(range(10 * number, 10 * number + 4)))})
    decode = DecodeInputs(SEATS, seats.block_table.shape[1], PAGE, CPU)
    return seats, PromptInputs(32, SEATS, decode)


def test_a_step_and_its_padding():
    seats, inputs = make()
    plan = StepPlan(step=1, rows=[row("b", 2, 6), row("a", 8, 1), row("c", 0, 5)])
    inputs.fill(seats.gather(plan), 16, None)
    ids, positions, slots, _, query_start, contexts = inputs.fields(16)
    assert ids.tolist() == [8, *range(102, 108), *range(200, 205), 0, 0, 0, 0]
    assert positions.tolist() == [8, *range(2, 8), *range(5), 0, 0, 0, 0]
    assert slots.tolist() == [8, *range(42, 48), *range(80, 85), -1, -1, -1, -1]
    assert query_start.tolist() == [0, 1, 7, 12]
    assert contexts.tolist() == [9, 8, 5]
    batch = inputs.batch(16)
    assert batch.lengths_on_device and batch.num_rows == SEATS
    assert batch.block_tables[:, :3].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
    assert batch.query_start.data_ptr() % 16 == batch.context_lens.data_ptr() % 16 == 0


def test_nothing_is_left_of_a_fuller_step():
    seats, inputs = make()
    plan = StepPlan(step=1, rows=[row("a", 0, 9), row("b", 0, 12), row("c", 0, 5)])
    inputs.fill(seats.gather(plan), 32, None)
    inputs.fill(seats.gather(StepPlan(step=2, rows=[row("c", 0, 3)])), 16, None)
    ids, _, slots, _, query_start, contexts = inputs.fields(16)
    assert ids.tolist() == [200, 201, 202] + [0] * 13
    assert slots[3:].tolist() == [-1] * 13
    assert query_start.tolist() == [0, 3, 3, 3]  # the rows that aren't there have no tokens
    assert contexts.tolist() == [3, 0, 0]


def test_tokens_that_the_host_does_not_know_yet():
    seats, inputs = make()
    drawn = DrawnTokens(SEATS)
    taken = np.array([seats.of("c"), seats.of("a")])
    drawn.keep(taken, torch.tensor([71, 72]))
    seats.expect(taken, np.array([5, 9]))
    plan = StepPlan(step=1, rows=[row("a", 9, 1), row("c", 5, 1), row("b", 0, 4)])
    inputs.fill(seats.gather(plan), 16, drawn)
    assert inputs.fields(16).token_ids[:6].tolist() == [72, 71, 100, 101, 102, 103]


def test_a_row_for_every_token_up_to_the_seats():
    _, inputs = make()
    assert [inputs.rows_of(size) for size in (1, 2, 16)] == [1, 2, 3]
    assert sum(inputs.batch(16).query_lens) == 16
