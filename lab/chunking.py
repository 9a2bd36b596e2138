"""Measure what a long prompt does to somebody who reads a stream, at once and in chunks."""

from __future__ import annotations

import statistics
from functools import partial
from itertools import pairwise

from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Lines, Series
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

READS, LONG = "reads", "long"
BEFORE = 4  # steps that the reader has for himself
CHUNK = 64


def _length(bench: Workbench) -> int:
    """Return the tokens of the long prompt."""
    length = min(512 if bench.quick else 2048, bench.kv.max_model_len - 32)
    if length < 3 * CHUNK:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens is too short for it")
    return length


def _budgets(bench: Workbench) -> list[int]:
    """Return budgets from one chunk to the whole prompt beside the reader's token."""
    length, budgets = _length(bench), [CHUNK]
    while 2 * budgets[-1] < length:
        budgets.append(2 * budgets[-1])
    return [*budgets, length + 1]


def predict(bench: Workbench) -> list[Expectation]:
    length, cost = _length(bench), bench.step_cost
    chunk = CHUNK - 1  # one token of the budget is the reader's
    chunks = -(-length // chunk)
    return [
        Expectation(
            "whole", "at once: the reader's longest gap", cost.prefill(length) + cost.row, "s",
            f"one step of {length} tokens, {quantity(cost.token, 's')} each, beside his own",
        ),
        Expectation(
            "chunked", f"budget {CHUNK}: the reader's longest gap",
            cost.prefill(chunk) + cost.row, "s",
            f"one step of {chunk} tokens of the prompt",
        ),
        Expectation(
            "steps", f"budget {CHUNK}: steps of the prompt", chunks, "",
            f"{length} tokens, {chunk} a step",
        ),
        Expectation(
            "first", f"budget {CHUNK}: the prompt's first token after",
            chunks * (cost.fixed + cost.row) + cost.token * length, "s",
            f"{chunks} steps instead of one: {chunks - 1} times"
            f" {quantity(cost.fixed + cost.row, 's')} more",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    length, budgets = _length(bench), _budgets(bench)

    def way(budget: int) -> Run:
        jobs = [
            Job(READS, bench.prompt(8), BEFORE + length // CHUNK + 8),
            Job(LONG, bench.prompt(length, 1), 2, after_steps=BEFORE),
        ]
        return bench.run([jobs], max_num_seqs=2, max_num_batched_tokens=budget)

    tries = bench.tries({str(budget): partial(way, budget) for budget in budgets})
    gaps = {int(name): [_longest_gap(run) for run in runs] for name, runs in tries.items()}
    firsts = {int(name): [_first(run) for run in runs] for name, runs in tries.items()}
    least, most = budgets[0], budgets[-1]
    own = statistics.median(_usual_gap(run) for run in tries[str(least)])
    answers = {tuple(run.tokens[LONG] + run.tokens[READS]) for runs in tries.values()
               for run in runs}  # fmt: skip
    same = "all answers are the same, however the prompt was cut"
    if len(answers) > 1:
        same = "an answer differs between budgets: rounding between nearly equal tokens"
    median = statistics.median
    return Outcome(
        {
            "whole": median(gaps[most]),
            "chunked": median(gaps[least]),
            "steps": len([s for s in tries[str(least)][0].steps if _share(s, LONG) > 1]),
            "first": median(firsts[least]),
        },
        [
            "longest gap of the reader: "
            + compared("at once", gaps[most], f"budget {least}", gaps[least]),
            f"when nobody else computes, his gap is {quantity(own, 's')}",
            "first token of the prompt: "
            + compared("at once", firsts[most], f"budget {least}", firsts[least]),
            same,
        ],
        [
            Lines(
                "The smaller the budget, the shorter the gap, and the later the first token",
                "budget", "seconds",
                [
                    Series("the reader's longest gap", [(b, median(gaps[b])) for b in budgets]),
                    Series("the prompt's first token", [(b, median(firsts[b])) for b in budgets]),
                ],
                log_x=True, log_y=True,
            ),
            Bars(
                "The reader's longest gap, with the lowest and the highest try", "s",
                [
                    Bar(f"budget {b}" if b != most else "at once", [(median(gaps[b]), 0)],
                        spread=(min(gaps[b]), max(gaps[b])))
                    for b in budgets
                ],
            ),
        ],
        tries={"whole": gaps[most], "chunked": gaps[least], "first": firsts[least]},
    )  # fmt: skip


def _share(step, name: str) -> int:
    return sum(row.num_tokens for row in step.planned.rows if row.request_id == name)


def _token_ends(run: Run) -> list[int]:
    """Return when each step that gave the reader a token ended."""
    return [s.finished.ts_ns for s in run.steps
            if any(r.request_id == READS and r.samples for r in s.planned.rows)]  # fmt: skip


def _gaps(run: Run) -> list[float]:
    ends = _token_ends(run)
    return [(b - a) / 1e9 for a, b in pairwise(ends)]


def _longest_gap(run: Run) -> float:
    """Return the reader's longest gap of those in which the prompt is computed."""
    ends = _token_ends(run)
    computed = {s.finished.ts_ns for s in run.steps if _share(s, LONG) > 1}
    return max((b - a) / 1e9 for a, b in pairwise(ends) if b in computed)


def _usual_gap(run: Run) -> float:
    return statistics.median(_gaps(run)[-6:])  # the prompt is done by then


def _first(run: Run) -> float:
    """Return the time from the plan of the prompt's first chunk to its first token."""
    mine = [s for s in run.steps if _share(s, LONG)]
    end = next(s for s in mine if any(r.request_id == LONG and r.samples for r in s.planned.rows))
    return (end.finished.ts_ns - mine[0].planned.ts_ns) / 1e9


CHAPTER = Chapter(
    "chunking",
    "Chunked prefill: a long prompt beside somebody who reads",
    "A step ends when its last token is computed, so a long prompt that is computed at once holds"
    " up all who wait for a next token. A budget of tokens cuts the prompt into chunks, which"
    " share their steps with the others' tokens. The reader's gaps get short, and the prompt's own"
    " first token comes later.",
    predict,
    run,
    "engine/core/scheduler.py",
    "how the budget is shared out, running requests first",
)
