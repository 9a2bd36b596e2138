"""Persistent rows: the tensors of a step against a loop over rows and tokens."""

from __future__ import annotations

import random

import torch

from engine.core.messages import NewBlocks, StepPlan
from engine.worker.seats import Seats
from tests.worker.worker_kit import new_row, row

CPU = torch.device("cpu")
SIZE = 4


def test_tensors_of_random_plans():
    chance = random.Random(1)
    seats = Seats(6, 60, SIZE)
    tables = {name: chance.sample(range(100), 15) for name in "abcdef"}
    texts = {name: [chance.randrange(500) for _ in range(60)] for name in "abcdef"}
    for name in "abcdef":
        seats.put(name, new_row(texts[name]))
    for name in "abcdef":  # a table comes in two parts
        seats.update_tables({name: NewBlocks(0, tables[name][:4])})
        seats.update_tables({name: NewBlocks(4, tables[name][4:])})
    for _ in range(60):
        plan = StepPlan(step=1, rows=[])
        for name in chance.sample("abcdef", chance.randint(1, 6)):
            start = chance.randrange(50)
            count = chance.choice([1, 1, chance.randint(1, 10)])
            plan.rows.append(row(name, start, count, samples=chance.randint(0, 2)))
        if chance.random() < 0.5:  # the core says it, a plan written by hand needn't
            plan.num_tokens = sum(part.num_tokens for part in plan.rows)
        inputs = seats.gather(plan)
        ordered = sorted(plan.rows, key=lambda part: part.num_tokens > 1)
        batch = inputs.attention(CPU)
        assert inputs.rows == ordered
        assert inputs.in_plan_order(ordered) == plan.rows
        assert inputs.samples == [part.samples for part in ordered]
        places = [(r.request_id, r.start + i) for r in ordered for i in range(r.num_tokens)]
        assert inputs.token_ids.tolist() == [texts[name][i] for name, i in places]
        assert batch.positions.tolist() == [i for _, i in places]
        assert batch.slot_mapping.tolist() == [
            tables[name][i // SIZE] * SIZE + i % SIZE for name, i in places
        ]
        contexts = [r.start + r.num_tokens for r in ordered]
        assert batch.context_lens.tolist() == batch.context_lens_list == contexts
        assert batch.max_context_len == max(contexts)
        assert batch.query_lens == [r.num_tokens for r in ordered]
        starts = [sum(batch.query_lens[:i]) for i in range(len(ordered) + 1)]
        assert batch.query_start.tolist() == inputs.query_start.tolist() == starts
        assert batch.num_decode_rows == sum(r.num_tokens == 1 for r in ordered)
        for part, table in zip(ordered, batch.block_tables.tolist()):
            pages = -(-(part.start + part.num_tokens) // SIZE)
            assert table[:pages] == tables[part.request_id][:pages]
        assert batch.block_tables.dtype == batch.context_lens.dtype == torch.int32
        assert batch.positions.dtype == batch.slot_mapping.dtype == torch.int64


def test_a_seat_is_clean_for_its_next_sequence():
    """After a row's own blocks its table is 0, whichever sequence had the seat before."""
    seats = Seats(2, 40, SIZE)
    seats.put("a", new_row([1] * 40))
    seats.put("long", new_row([2] * 40))
    tables = {"a": NewBlocks(0, list(range(5, 15))), "long": NewBlocks(0, list(range(10)))}
    seats.update_tables(tables)
    seats.drop("a")
    seats.put("b", new_row([3]))
    seats.update_tables({"b": NewBlocks(0, [7])})
    plan = StepPlan(step=1, rows=[row("b", 0, 1), row("long", 39, 1)])
    assert seats.gather(plan).attention(CPU).block_tables[0].tolist() == [7] + [0] * 9


def test_seats_come_back():
    seats = Seats(2, 8, SIZE)
    for i in range(20):
        seats.put(str(i), new_row([i], prompt_logprobs=1 if i % 2 else None))
        if i:
            seats.drop(str(i - 1))
    assert len(seats) == 1 and seats.any_prompt_logprobs
    seats.drop("19")
    assert not seats.any_prompt_logprobs
