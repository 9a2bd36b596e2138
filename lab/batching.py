"""Compare continuous with static batching (a chapter)."""

from __future__ import annotations

import heapq
import statistics

from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Lanes, colour
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

OUTPUTS = (200, 50, 150, 100, 30, 70)
SEATS = 3
PROMPT = 16


def _outputs(bench: Workbench) -> list[int]:
    """Return the tokens that each request wants; fewer where the context is smaller."""
    room = bench.kv.max_model_len - PROMPT
    if room < 20:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens is too short for it")
    scale = min(0.5 if bench.quick else 1.0, room / max(OUTPUTS))
    return [max(2, int(scale * wanted)) for wanted in OUTPUTS]


def _static_steps(outputs: list[int]) -> int:
    return sum(max(outputs[i : i + SEATS]) for i in range(0, len(outputs), SEATS))


def _continuous_steps(outputs: list[int]) -> int:
    """Count the steps until all are done: each request takes the first free seat."""
    seats = [0] * SEATS
    for wanted in outputs:
        heapq.heapreplace(seats, seats[0] + wanted)
    return max(seats)


def predict(bench: Workbench) -> list[Expectation]:
    outputs, cost = _outputs(bench), bench.step_cost
    static, continuous = _static_steps(outputs), _continuous_steps(outputs)
    busy = sum(outputs) / SEATS
    batches = [outputs[i : i + SEATS] for i in range(0, len(outputs), SEATS)]
    longest = " + ".join(f"max{tuple(batch)}" for batch in batches)
    return [
        Expectation("static", "static: steps", static, "", longest.replace(",)", ")")),
        Expectation(
            "continuous", "continuous: steps", continuous, "",
            "whoever waits takes the first seat that becomes free",
        ),
        Expectation(
            "static_s", "static: time", static * cost.decode(busy / static * SEATS), "s",
            f"a step takes {quantity(cost.fixed, 's')} + {quantity(cost.row, 's')} a request",
        ),
        Expectation(
            "continuous_s", "continuous: time",
            continuous * cost.decode(busy / continuous * SEATS), "s",
            "the same, with fuller steps",
        ),
        Expectation(
            "gain", "throughput, continuous over static", static / continuous, "×",
            "the steps; a fuller step takes little longer",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    outputs = _outputs(bench)

    def jobs(name: str) -> list[Job]:
        return [
            Job(f"{name}-{i}", bench.prompt(PROMPT, i), wanted) for i, wanted in enumerate(outputs)
        ]

    waiting = jobs("static")
    batches = [waiting[i : i + SEATS] for i in range(0, len(waiting), SEATS)]
    tries = bench.tries(
        {
            "static": lambda: bench.run(batches, max_num_seqs=SEATS),
            "continuous": lambda: bench.run([jobs("continuous")], max_num_seqs=SEATS),
        }
    )
    seconds = {name: [run.seconds for run in runs] for name, runs in tries.items()}
    static, continuous = (min(runs, key=lambda run: run.seconds) for runs in tries.values())
    wait = [run.first_s[f"{name}-3"] for name, run in
            (("static", static), ("continuous", continuous))]  # fmt: skip
    wait[0] += static.end_s["static-0"]  # handed over when the first batch was done
    rates = [run.num_output / run.seconds for run in (static, continuous)]
    end = max(len(static.steps), len(continuous.steps))
    return Outcome(
        {
            "static": len(static.steps),
            "continuous": len(continuous.steps),
            "static_s": statistics.median(seconds["static"]),
            "continuous_s": statistics.median(seconds["continuous"]),
            "gain": rates[1] / rates[0],
        },
        [
            "time in all: "
            + compared("static", seconds["static"], "continuous", seconds["continuous"]),
            f"static {quantity(rates[0], 'tokens/s')}, continuous"
            f" {quantity(rates[1], 'tokens/s')}; seats in use"
            f" {quantity(_busy(static), 'share')} against {quantity(_busy(continuous), 'share')}",
            f"the fourth request had its first token after {quantity(wait[0], 's')} with static"
            f" batches and after {quantity(wait[1], 's')} with continuous batching",
            "the static run is kind to its side: an answer that is done is not computed on, as it"
            " would be in a padded batch",
        ],
        [_lanes("Static, a batch waits for its slowest", static, end),
         _lanes("Continuous, a seat is taken as soon as it is free", continuous, end)],
        tries={"static_s": seconds["static"], "continuous_s": seconds["continuous"]},
    )  # fmt: skip


def _busy(run: Run) -> float:
    return sum(len(step.planned.rows) for step in run.steps) / (SEATS * len(run.steps))


def _lanes(title: str, run: Run, end: int) -> Lanes:
    """Draw seats × steps, from the rows of the record's steps."""
    seats: list[list[tuple[float, float, int]]] = [[] for _ in range(SEATS)]
    sitting: dict[str, int] = {}
    for number, step in enumerate(run.steps):
        names = [row.request_id for row in step.planned.rows]
        sitting = {name: seat for name, seat in sitting.items() if name in names}
        for name in names:
            free = [seat for seat in range(SEATS) if seat not in sitting.values()]
            seat = sitting.setdefault(name, free[0] if free else 0)
            own = colour(int(name.rsplit("-", 1)[1]))
            spans = seats[seat]
            if spans and spans[-1][1:] == (number, own):
                spans[-1] = (spans[-1][0], number + 1, own)
            else:
                spans.append((number, number + 1, own))
    lanes = [(f"seat {i + 1}", spans) for i, spans in enumerate(seats)]
    legend = [(f"request {i + 1}", colour(i)) for i in range(len(OUTPUTS))]
    return Lanes(f"{title}: {len(run.steps)} steps", "step", lanes, legend, at_least=end)


CHAPTER = Chapter(
    "batching",
    "Continuous against static batching",
    "A step with several requests costs little more than a step with one, because all of them share"
    " the reading of the weights. A static batch runs until its longest answer is done, and the"
    " seats of the others stay empty. Continuous batching decides anew in each step who runs, so"
    " that a free seat is taken at once.",
    predict,
    run,
    "engine/core/scheduler.py",
    "one token budget, one pass, each step anew",
)
