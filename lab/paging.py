"""Compare paged memory with reserved memory (a chapter)."""

from __future__ import annotations

import statistics
from functools import partial

from engine.rounding import ceil_div
from engine.trace.events import RequestPreempted, StepPlanned
from engine.trace.replay import Replay
from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.drawings import EMPTY, Cells, Lines, Series, colour
from lab.workbench import Job, Run, Workbench

RESERVATIONS = 2  # of the longest request that the pool holds
REQUESTS = 12


def _longest(bench: Workbench) -> int:
    """Return the tokens that a request may have.

    A server that can't give everyone its whole model limits them likewise.
    """
    return min(bench.kv.max_model_len, 512 if bench.quick else 1024)


def _reserved(bench: Workbench) -> int:
    """Return the blocks that reserving for the longest possible request takes."""
    return ceil_div(_longest(bench), bench.kv.block_size)


def _jobs(bench: Workbench, name: str) -> list[Job]:
    """Make requests of many lengths, as people send them; most are far from the longest."""
    unit = _longest(bench) // 32
    return [
        Job(f"{name}-{i}", bench.prompt(unit * (1 + i * 5 % 4), i), unit * (1 + i * 7 % 6))
        for i in range(REQUESTS)
    ]


def predict(bench: Workbench) -> list[Expectation]:
    size, jobs = bench.kv.block_size, _jobs(bench, "")
    pool = RESERVATIONS * _reserved(bench)
    mean = statistics.mean(len(job.prompt) + job.num_output / 2 for job in jobs)
    blocks = [ceil_div(len(job.prompt) + job.num_output - 1, size) for job in jobs]
    together = 0
    while together < len(jobs) and sum(blocks[: together + 1]) <= pool:
        together += 1
    return [
        Expectation(
            "paged", "paged: slots that hold a token", mean / (mean + (size - 1) / 2), "share",
            f"a request of {mean:.0f} tokens wastes half of its last block of {size}",
        ),
        Expectation(
            "reserved", "reserved: slots that hold a token",
            mean / (_reserved(bench) * size), "share",
            f"{mean:.0f} tokens of the {_reserved(bench) * size:,} that a request may have",
        ),
        Expectation(
            "together", "paged: requests at once", together, "",
            f"as many as fit to their full length, {statistics.mean(blocks):.1f} blocks each, into"
            f" {pool}",
        ),
        Expectation(
            "together_reserved", "reserved: requests at once", RESERVATIONS, "",
            f"{pool} blocks for {_reserved(bench)} each",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    reserve, pool = _reserved(bench), RESERVATIONS * _reserved(bench)
    # Reserving means a fixed number of seats, each with its own room for the longest request.
    runs = bench.in_turns(
        {
            "paged": partial(bench.run, [_jobs(bench, "paged")], num_blocks=pool),
            "reserved": partial(
                bench.run, [_jobs(bench, "seat")], num_blocks=pool, max_num_seqs=RESERVATIONS
            ),
        }
    )
    paged, reserved = runs["paged"], runs["reserved"]
    used = [len(step.planned.rows) * reserve * bench.kv.block_size for step in reserved.steps]
    held = [step.tokens_held for step in reserved.steps]
    most = max(paged.steps, key=lambda step: len(step.planned.rows))
    fullest = max(paged.steps, key=lambda step: step.planned.blocks_used)
    return Outcome(
        {
            "paged": paged.memory_efficiency(),
            "reserved": statistics.mean(h / u for h, u in zip(held, used, strict=True)),
            "together": len(most.planned.rows),
            "together_reserved": max(len(step.planned.rows) for step in reserved.steps),
        },
        [
            f"the same {REQUESTS} requests in the same memory: {quantity(paged.seconds, 's')} paged"
            f" in {len(paged.steps)} steps, {quantity(reserved.seconds, 's')} reserved in"
            f" {len(reserved.steps)}",
            f"at most {fullest.planned.blocks_used} of {pool} blocks were in use, by"
            f" {len(fullest.planned.rows)} requests, for which reserving takes"
            f" {len(fullest.planned.rows) * reserve:,}; {len(paged.of(RequestPreempted))} times a"
            " request had to give its blocks back",
        ],
        [_grid(paged, fullest.planned.step, pool), _memory(paged, reserve)],
    )


def _grid(run: Run, step: int, pool: int) -> Cells:
    """Return the pool at that step, by folding the record, and who owns which block."""
    replay = Replay(pool, run.kv.num_host_blocks)
    for event in run.events:
        replay.fold(event)
    replay.seek(next(i for i, event in enumerate(run.events, 1)
                     if isinstance(event, StepPlanned) and event.step == step))  # fmt: skip
    tables = replay.state.tables
    cells = [EMPTY] * pool
    for number, table in enumerate(tables.values()):
        for block in table:
            cells[block] = colour(number)
    width = 64
    rows = [(f"{first}", cells[first : first + width]) for first in range(0, pool, width)]
    return Cells(
        f"The pool in step {step}: {pool} blocks, each in the colour of its request",
        rows,
        [("free", EMPTY)],
    )


def _memory(run: Run, reserve: int) -> Lines:
    size = run.kv.block_size
    first = run.steps[0].planned.step
    steps = [(step.planned.step - first + 1, step) for step in run.steps]
    return Lines(
        "Slots of the paged run, and what reserving would take for the same requests",
        "step",
        "slots",
        [
            Series("tokens held", [(n, step.tokens_held) for n, step in steps]),
            Series("paged: blocks in use", [(n, s.planned.blocks_used * size) for n, s in steps]),
            Series("reserved", [(n, len(s.planned.rows) * reserve * size) for n, s in steps]),
        ],
    )


CHAPTER = Chapter(
    "paging",
    "Paged against reserved memory",
    "How long an answer gets is not known before it ends, so a simple server reserves room for the"
    " longest one. Paging gives out blocks of a few tokens as a sequence grows, and a block table"
    " says where they lie, as an operating system does with pages. Then only the last block of"
    " each sequence is partly empty, and the same memory serves more people at once.",
    predict,
    run,
    "engine/core/kv_manager.py",
    "a request's pages: allocate, share, copy-on-write, swap, free",
)
