"""Run a scheduling policy of one's own beside the engine's, on the same arrivals (a chapter)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import msgspec

from engine.core.engine_core import MakeScheduler
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.trace.events import Event, StepFinished, StepPlanned
from engine.whatif.arrivals import Arrival
from engine.whatif.simulator import run as simulate
from engine.whatif.step_times import Shape
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import EMPTY, Bar, Bars, Lanes
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

SEATS = 2
LONG, SHORT = 3, 6  # requests; the long ones come first, and have answers
LONGER = 3  # times as long
SHORT_PROMPT = 8
COMPUTES, WAITS = 0, EMPTY


class ShortestFirst(Scheduler):
    """Let the shortest prompt go first: what the chapter shows unless you name a class of yours."""

    def add(self, request: Request) -> None:
        _priority, arrival, index = request.rank
        request.rank = (request.num_prompt_tokens, arrival, index)
        super().add(request)


def _lengths(bench: Workbench) -> list[int]:
    """Return the lengths of the prompts, in the order of arrival."""
    longest = min(128 if bench.quick else 512, bench.kv.max_model_len // 2)
    blocks = SEATS * (longest + LONGER * _answer(bench)) // bench.kv.block_size + SEATS
    if longest <= 2 * SHORT_PROMPT or blocks > bench.kv.num_blocks:
        raise CannotShow(f"{longest} tokens and {bench.kv.num_blocks} blocks are too few for it")
    return [longest] * LONG + [SHORT_PROMPT + i for i in range(SHORT)]


def _answer(bench: Workbench) -> int:
    return min(12 if bench.quick else 32, bench.kv.max_model_len // (4 * LONGER))


def _jobs(bench: Workbench, way: str) -> list[Job]:
    return [
        Job(
            f"{way}-{number}",
            bench.prompt(length, number),
            _answer(bench) * (LONGER if number < LONG else 1),
        )
        for number, length in enumerate(_lengths(bench))
    ]


def _policies(bench: Workbench) -> dict[str, type[Scheduler]]:
    return {"fcfs": Scheduler, "own": bench.policy or ShortestFirst}


def _simulated(bench: Workbench, policy: MakeScheduler) -> list[Event]:
    """Run the arrivals through the real core, with steps that take what a step was measured."""
    cost = bench.step_cost
    arrivals = [
        Arrival(job.name, 1, len(job.prompt), job.num_output, 0, 1, [job.num_output],
                [[*job.prompt, *[0] * job.num_output]], stops=False)
        for job in _jobs(bench, "simulated")
    ]  # fmt: skip

    def step_us(shape: Shape) -> float:
        prompt, rows, *_rest = shape
        return 1e6 * (cost.fixed + cost.token * prompt + cost.row * rows)

    config = replace(
        bench.config, max_num_seqs=SEATS, enable_prefix_caching=False, async_scheduling=False
    )
    kv = msgspec.structs.replace(bench.kv, num_host_blocks=0)
    return simulate(arrivals, config, kv, step_us, scheduler=policy)


def _first_tokens(events: Iterable[Event]) -> dict[int, tuple[int, float]]:
    """Return by request (its number) the step of its first token, from 1, and the seconds."""
    planned: dict[int, StepPlanned] = {}
    found: dict[int, tuple[int, float]] = {}
    begin_ns, steps = 0, 0
    for event in events:
        if isinstance(event, StepPlanned):
            planned[event.step] = event
            begin_ns = begin_ns or event.ts_ns
        elif isinstance(event, StepFinished):
            steps += 1
            for row in planned[event.step].rows:
                number = int(row.request_id.rpartition("-")[2])
                if row.samples and number not in found:
                    found[number] = steps, (event.ts_ns - begin_ns) / 1e9
    return found


def _steps(events: Iterable[Event]) -> float:
    return statistics.mean(step for step, _seconds in _first_tokens(events).values())


def _seconds(events: Iterable[Event]) -> float:
    return statistics.mean(seconds for _step, seconds in _first_tokens(events).values())


def _steps_of_long(events: Iterable[Event]) -> float:
    found = _first_tokens(events)
    return statistics.mean(found[number][0] for number in range(LONG))


def predict(bench: Workbench) -> list[Expectation]:
    fcfs, own = (_simulated(bench, policy) for policy in _policies(bench).values())
    name = _policies(bench)["own"].__name__
    why = "the same arrivals through the same core, without a model"
    return [
        Expectation("fcfs", "steps until a first token, on average, fcfs", _steps(fcfs), "", why),
        Expectation("own", f"steps until a first token, on average, {name}", _steps(own), "", why),
        Expectation(
            "ratio", "time to first token, on average, fcfs over own",
            _seconds(fcfs) / _seconds(own), "×",
            "the same, each step as long as one was measured here",
        ),
        Expectation(
            "price", f"steps until a long prompt's first token, on average, {name}",
            _steps_of_long(own), "",
            f"the price: with fcfs it is {quantity(_steps_of_long(fcfs), '')}",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    policies = _policies(bench)
    ways = {
        way: partial(bench.run, [_jobs(bench, way)], scheduler=policy, max_num_seqs=SEATS)
        for way, policy in policies.items()
    }
    tries = bench.tries(ways)
    runs = {way: min(tries[way], key=lambda run: run.seconds) for way in tries}
    means = {way: [_seconds(run.events) for run in tries[way]] for way in tries}
    mean = {way: statistics.median(seconds) for way, seconds in means.items()}
    name = policies["own"].__name__
    same = all(
        runs["fcfs"].tokens[f"fcfs-{i}"] == runs["own"].tokens[f"own-{i}"]
        for i in range(LONG + SHORT)
    )
    price = {way: _steps_of_long(run.events) for way, run in runs.items()}
    ratios = [one / other for one, other in zip(means["fcfs"], means["own"], strict=True)]
    longest = max(len(run.steps) for run in runs.values())
    return Outcome(
        {
            "fcfs": _steps(runs["fcfs"].events),
            "own": _steps(runs["own"].events),
            "ratio": statistics.median(ratios),
            "price": price["own"],
        },
        [
            "time to first token, on average: "
            + compared("fcfs", means["fcfs"], name, means["own"]),
            "a long prompt's first token comes after"
            f" {quantity(price['fcfs'], '')} steps with fcfs, {quantity(price['own'], '')} with"
            f" {name}: a policy moves waiting from some to others",
            "every answer is the same with both" if same else "answers differ: rounding between"
            " nearly equal tokens",
            "a class of your own: --scheduler-cls MODULE:CLASS, a subclass of Scheduler",
        ],
        [
            _lanes(runs["fcfs"], "fcfs", longest),
            _lanes(runs["own"], name, longest),
            Bars("The time to first token, with the lowest and the highest try", "s", [
                Bar(title, [(mean[way], number)], spread=(min(means[way]), max(means[way])))
                for number, (way, title) in enumerate((("fcfs", "fcfs"), ("own", name)))
            ]),
        ],
        tries={"ratio": ratios},
    )  # fmt: skip


def _lanes(run: Run, name: str, longest: int) -> Lanes:
    """Draw for each request how long it waits and in which steps it computes."""
    ran: dict[int, list[int]] = {}
    for number, step in enumerate(run.steps):
        for row in step.planned.rows:
            ran.setdefault(int(row.request_id.rpartition("-")[2]), []).append(number)
    lanes: list[tuple[str, list[tuple[float, float, int]]]] = []
    for number in range(LONG + SHORT):
        first, end = ran[number][0], ran[number][-1] + 1
        waits: list[tuple[float, float, int]] = [(0, first, WAITS)] if first else []
        kind = "long" if number < LONG else "short"
        lanes.append((f"{number + 1}, {kind}", [*waits, (first, end, COMPUTES)]))
    legend = [("computes", COMPUTES), ("waits", WAITS)]
    title = f"{LONG + SHORT} requests on {SEATS} seats, {name}"
    return Lanes(title, "step", lanes, legend, at_least=longest)


CHAPTER = Chapter(
    "policy",
    "A policy of your own beside fcfs",
    "Who goes first is a policy, and the engine's is first come, first served. Here three long"
    " prompts come before six short ones, and the same arrivals run a second time under another"
    " policy: the shortest prompt first, or the class that you name. The prediction comes from"
    " the same core without a model, so counts should come out exactly.",
    predict,
    run,
    "course/holes/scheduling.py",
    "where a policy of yours goes in: one method",
)
