"""The inputs of a captured step: the step's rows, and padding that reads and writes nothing."""

from __future__ import annotations

import torch

from engine.core.messages import NewBlocks, StepPlan
from engine.worker.graphs.decode_inputs import DecodeInputs
from engine.worker.seats import Seats
from tests.worker.worker_kit import new_row, row

CPU = torch.device("cpu")
SIZE = 4
LENGTHS = {"a": 9, "b": 3, "c": 14, "d": 6, "e": 11}


def make() -> tuple[Seats, DecodeInputs]:
    seats = Seats(8, 40, SIZE)
    for number, (name, length) in enumerate(LENGTHS.items()):
        seats.put(name, new_row([100 * number + i for i in range(length)]))
        seats.update_tables({name: NewBlocks(0, list(range(10 * number, 10 * number + 4)))})
    return seats, DecodeInputs(8, seats.block_table.shape[1], SIZE, CPU)


def fill(seats: Seats, inputs: DecodeInputs, names: str, size: int) -> None:
    plan = StepPlan(step=1, rows=[row(name, LENGTHS[name] - 1, 1) for name in names])
    inputs.fill(seats.gather(plan), size, None)


def test_a_steps_rows_are_there_whatever_was_before():
    seats, inputs = make()
    for names in ("abcde", "e", "db", "acdeb", "ca", "c"):
        fill(seats, inputs, names, len(names))
        count, lengths = len(names), [LENGTHS[name] for name in names]
        assert inputs.contexts[:count].tolist() == lengths
        assert inputs.positions[:count].tolist() == [length - 1 for length in lengths]
        numbers = ["abcde".index(name) for name in names]
        assert inputs.token_ids[:count].tolist() == [
            100 * number + length - 1 for number, length in zip(numbers, lengths)
        ]
        assert inputs.slots[:count].tolist() == [
            (10 * number + (length - 1) // SIZE) * SIZE + (length - 1) % SIZE
            for number, length in zip(numbers, lengths)
        ]
        for table, number, length in zip(inputs.tables.tolist(), numbers, lengths):
            pages = -(-length // SIZE)
            assert table[:pages] == list(range(10 * number, 10 * number + pages))


def test_padding_reads_and_writes_nothing_after_a_fuller_step():
    seats, inputs = make()
    fill(seats, inputs, "abcde", 5)
    fill(seats, inputs, "ec", 4)
    assert inputs.contexts[:4].tolist() == [11, 14, 0, 0]
    assert inputs.slots[2:4].tolist() == [-1, -1]
    batch = inputs.batch(4)
    assert batch.context_lens.tolist() == [11, 14, 0, 0] and batch.num_rows == 4


def test_a_table_is_copied_again_when_its_context_reaches_a_block_that_was_there_before():
    """Blocks may come with a plan long before the context reaches them."""
    seats, inputs = make()
    fill(seats, inputs, "b", 1)  # 3 tokens: one of its four blocks is wanted
    plan = StepPlan(step=2, rows=[row("b", 4, 1)])
    inputs.fill(seats.gather(plan), 1, None)
    assert inputs.tables[0, :2].tolist() == [10, 11]
