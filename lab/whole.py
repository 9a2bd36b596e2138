"""Compare transformers, one by one and in static batches, with this engine (a chapter)."""

from __future__ import annotations

import heapq
import random

from engine.rounding import ceil_div
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Lines, Series
from lab.peer import Peer, PeerRun
from lab.workbench import Job, Run, Workbench

BATCH = 8
ONE, STATIC, OURS = "transformers, one by one", f"transformers, static {BATCH}", "this engine"


def _jobs(bench: Workbench) -> list[Job]:
    """Make jobs with lengths uniform in a wide range, always the same."""
    number, longest = (12, 64) if bench.quick else (32, 192)
    longest = min(longest, bench.kv.max_model_len // 2)
    if longest < 8:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens is too short for it")
    draw = random.Random(0)
    return [
        Job(
            f"whole-{i}",
            bench.prompt(draw.randint(longest // 4, longest), i),
            draw.randint(longest // 8, longest),
        )
        for i in range(number)
    ]


def _engine_seconds(bench: Workbench, jobs: list[Job]) -> float:
    """Estimate the time for all prompts, then decode steps with as many rows as still run."""
    cost = bench.step_cost
    seconds = cost.token * sum(len(job.prompt) for job in jobs)
    ends = sorted(job.num_output for job in jobs)
    heapq.heapify(ends)
    before = 0
    while ends:
        running, end = len(ends), heapq.heappop(ends)
        seconds += (end - before) * cost.decode(running)
        before = end
    return seconds


def predict(bench: Workbench) -> list[Expectation]:
    jobs, cost = _jobs(bench), bench.step_cost
    tokens = sum(job.num_output for job in jobs)
    alone = sum(cost.prefill(len(job.prompt)) + (job.num_output - 1) * cost.decode(1)
                for job in jobs)  # fmt: skip
    together = _engine_seconds(bench, jobs)
    real = padded = 0
    for i in range(0, len(jobs), BATCH):
        batch = jobs[i : i + BATCH]
        width = max(len(j.prompt) for j in batch) + max(j.num_output for j in batch) - 1
        padded += len(batch) * width
        real += sum(len(j.prompt) + j.num_output - 1 for j in batch)
    return [
        Expectation(
            "ours", "this engine: throughput", tokens / together, "tokens/s",
            f"{tokens:,} tokens; a step takes {quantity(cost.fixed, 's')}"
            f" + {quantity(cost.row, 's')} for each request in it",
        ),
        Expectation(
            "gain", "over one by one", alone / together, "×",
            "if transformers' steps took as long as ours do for one request",
        ),
        Expectation(
            "padding", "static: KV slots that hold a token", real / padded, "share",
            "every row of a batch is as long as its longest prompt and its longest answer",
        ),
        Expectation(
            "memory", "this engine: KV slots that hold a token", _paged_share(bench, jobs), "share",
            f"half a block of {bench.kv.block_size} is empty in each request",
        ),
    ]  # fmt: skip


def _paged_share(bench: Workbench, jobs: list[Job]) -> float:
    mean = sum(len(job.prompt) + job.num_output / 2 for job in jobs) / len(jobs)
    return mean / (mean + (bench.kv.block_size - 1) / 2)


def run(bench: Workbench) -> Outcome:
    jobs = _jobs(bench)
    bench.run([jobs[:1]])
    ours = bench.run([jobs])
    peer = Peer(bench)
    peer.run([Job("warm", jobs[0].prompt, 2)], 1)
    one, static = peer.run(jobs, 1), peer.run(jobs, BATCH)
    tokens = ours.num_output
    ends = {ONE: one.end_s, STATIC: static.end_s, OURS: list(ours.end_s.values())}
    seconds = {ONE: one.seconds, STATIC: static.seconds, OURS: ours.seconds}
    same = sum(ours.tokens[job.name] == row for job, row in zip(jobs, one.tokens, strict=True))
    points = {name: [percentile(times, q) for q in (50, 95, 99)] for name, times in ends.items()}
    return Outcome(
        {
            "ours": tokens / ours.seconds,
            "gain": one.seconds / ours.seconds,
            "padding": _share(static),
            "memory": ours.memory_efficiency(),
        },
        [
            *(
                f"{name}: {quantity(tokens / seconds[name], 'tokens/s')},"
                f" P50 {quantity(p50, 's')}, P95 {quantity(p95, 's')}, P99 {quantity(p99, 's')}"
                for name, (p50, p95, p99) in points.items()
            ),
            f"{len(jobs)} requests at once (P99 is the slowest of them); this engine is"
            f" {quantity(static.seconds / ours.seconds, '×')} as fast as static batches, and"
            f" {same} of {len(jobs)} answers equal those of transformers one by one, token for"
            " token" + _rounding(bench, same, len(jobs)),
        ],
        [
            Bars(
                "Throughput", "tokens/s",
                [Bar(name, [(tokens / s, i)]) for i, (name, s) in enumerate(seconds.items())],
            ),
            Lines(
                "Requests that are done, over time", "seconds", "done",
                [Series(name, _done(times)) for name, times in ends.items()],
            ),
            Bars("KV slots that hold a token", "share",
                 [Bar(STATIC, [(_share(static), 1)]), Bar(OURS, [(_memory(ours), 2)])]),
        ],
    )  # fmt: skip


def percentile(values: list[float], q: float) -> float:
    """Return the smallest value that at least q % of the values don't exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil_div(len(ordered) * q, 100) - 1)]


def _done(times: list[float]) -> list[tuple[float, float]]:
    points = [(0.0, 0.0)]
    for number, end in enumerate(sorted(times), 1):
        points += [(end, number - 1.0), (end, float(number))]
    return points


def _share(run: PeerRun) -> float:
    return run.slots_with_token / run.slots


def _memory(run: Run) -> float:
    return run.memory_efficiency()


def _rounding(bench: Workbench, same: int, number: int) -> str:
    if same == number or bench.dtype.itemsize == 4:
        return ""
    name = str(bench.dtype).removeprefix("torch.")
    return f" (in {name} nearly equal tokens can change places; fp32 gives all)"


CHAPTER = Chapter(
    "whole",
    "The whole: three ways to serve the same requests",
    "Each chapter before this one showed one idea; a serving engine is all of them at work at once."
    " The same weights answer the same requests three times: one after another, in static batches,"
    " and on this engine. What counts is not only how many tokens a second come out, but how long"
    " the slowest have to wait.",
    predict,
    run,
    "engine/core/engine_core.py",
    "the loop that everything here ran on",
)
