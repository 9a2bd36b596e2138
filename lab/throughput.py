"""Measure throughput against latency: what more sequences in a step cost each of them."""

from __future__ import annotations

import statistics
from functools import partial

from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Lines, Series
from lab.spread import shown
from lab.workbench import SEATS, Job, Run, Workbench

PROMPT = 16
BEND = 2.0  # a gap so many times as long as that of one sequence alone


def _counts(bench: Workbench) -> list[int]:
    """Return how many sequences run together."""
    room = min(SEATS, bench.kv.num_blocks * bench.kv.block_size // (PROMPT + _steps(bench) + 16))
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= room]
    if len(counts) < 4:
        raise CannotShow(f"the cache holds {room} sequences, which make no curve")
    return counts


def _steps(bench: Workbench) -> int:
    return min(12 if bench.quick else 48, bench.kv.max_model_len - PROMPT - 1)


def predict(bench: Workbench) -> list[Expectation]:
    counts, cost = _counts(bench), bench.step_cost
    most = counts[-1]
    return [
        Expectation(
            "one", "tokens a second, 1 sequence", 1 / cost.decode(1), "tokens/s",
            f"a step takes {quantity(cost.fixed, 's')} + {quantity(cost.row, 's')} a sequence",
        ),
        Expectation(
            "many", f"tokens a second, {most} sequences", most / cost.decode(most), "tokens/s",
            f"{most} tokens in {quantity(cost.decode(most), 's')}",
        ),
        Expectation(
            "gap", f"gap between tokens, {most} sequences over 1",
            cost.decode(most) / cost.decode(1), "×",
            "the same, and so each sequence's next token comes later",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    counts = _counts(bench)

    def way(count: int) -> Run:
        jobs = [Job(f"load-{i}", bench.prompt(PROMPT, i), _steps(bench)) for i in range(count)]
        return bench.run([jobs], max_num_seqs=SEATS)

    tries = bench.tries({str(count): partial(way, count) for count in counts})
    gaps = {int(name): [_gap(run) for run in runs] for name, runs in tries.items()}
    gap = {count: statistics.median(times) for count, times in gaps.items()}
    rate = {count: count / gap[count] for count in counts}
    most = counts[-1]
    return Outcome(
        {"one": rate[1], "many": rate[most], "gap": gap[most] / gap[1]},
        [
            _bend(counts, gap),
            f"from 1 to {most} sequences throughput grows {quantity(rate[most] / rate[1], '×')},"
            f" the gap {quantity(gap[most] / gap[1], '×')}",
            f"tries of one point lie apart: {shown(gaps[1], 's')} for 1 sequence,"
            f" {shown(gaps[most], 's')} for {most}" if len(gaps[1]) > 1 else "one try each",
        ],
        [
            Lines(
                "Throughput against latency: each point is a number of sequences",
                "tokens a second", "seconds",
                [Series("gap between tokens", [(rate[n], gap[n]) for n in counts])],
            ),
            Bars(
                "The gap between tokens, with the lowest and the highest try", "s",
                [Bar(f"{n} at once", [(gap[n], 0)], spread=(min(gaps[n]), max(gaps[n])))
                 for n in counts],
            ),
        ],
        tries={
            "one": [1 / gap for gap in gaps[1]],
            "many": [most / gap for gap in gaps[most]],
        },
    )  # fmt: skip


def _gap(run: Run) -> float:
    """Return the median time of a step in which everybody decodes."""
    return statistics.median(
        step.finished.total_us
        for step in run.steps
        if all(row.num_tokens == 1 for row in step.planned.rows)
    ) / 1e6  # fmt: skip


def _bend(counts: list[int], gap: dict[int, float]) -> str:
    """Say from how many sequences on a gap is twice as long as one sequence's."""
    for count in counts:
        if gap[count] >= BEND * gap[1]:
            return (
                f"the curve bends at {count} sequences: there a token takes"
                f" {quantity(gap[count] / gap[1], '×')} as long as for one"
            )
    return f"up to {counts[-1]} sequences the gap doesn't double: this machine has room for more"


CHAPTER = Chapter(
    "throughput",
    "Throughput against latency: where the curve bends",
    "A step reads all weights once, whether it draws one token or fifty. So at first more sequences"
    " at once bring more tokens a second and hardly cost anybody time; later the rows' own work"
    " fills the step, and each further sequence slows down all others. An operator chooses a point"
    " on this curve, with the number of seats.",
    predict,
    run,
    "engine/config/options.py",
    "`max_num_seqs`, the option that chooses the point",
)
