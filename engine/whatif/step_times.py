"""Fit to a record how long a step takes.

a + b · prompt tokens + c · decoding rows + d · copies + e · prompts + f, if there is a prompt: a
step that only decodes may be replayed, one with a prompt is launched kernel by kernel. Without e
and f, b would carry what they cost: too much for prompts longer than those of the record, too
little for parts of them. A record in which no step has two prompts can't tell e from f; it is f
then, since launches cost more than a further prompt among them.

The fit minimizes the sum of relative errors, so that one slow step among a thousand changes little;
steps that captured a graph are left out, for that is done once. Steps of the same shape differ: a
prediction is the fit times one of the ratios that steps of about this length had in the record, so
that slow steps occur as often.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import median

from engine.trace import events as ev
from engine.trace.events import Event, StepRow

ROUNDS = 30  # of reweighting
FEWEST = 8  # steps for a fit
ALIKE = 40  # steps of about one length, whose ratios a prediction draws from
KNOWN = 8  # steps of one shape, from which on its own median counts
FEATURES = 6
PROMPT = 4  # the feature that is held back
HELD_BACK = 1e-4  # by so much of its weight: enough where nothing tells it from another one

Shape = tuple[int, int, int, int]
"""(prompt tokens, decoding rows, blocks copied, prompts that these tokens are of)"""


def shape_of(rows: Sequence[StepRow], copies: int) -> Shape:
    """Return what a step's time depends on."""
    prompts = [row.num_tokens for row in rows if row.num_tokens > 1 or not row.samples]
    return sum(prompts), len(rows) - len(prompts), copies, len(prompts)


class StepTimes:
    """Predict the time of steps as this record's machine and model would take it.

    Raises ValueError if the record has too few steps.
    """

    def __init__(self, events: Sequence[Event], seed: int = 0):
        self.steps = observed(events)
        if len(self.steps) < FEWEST:
            raise ValueError(f"the record has {len(self.steps)} steps to fit; {FEWEST} are needed")
        self.error = self._held_out_error()
        self.cost = fit(self.steps)
        times: dict[Shape, list[float]] = {}
        for shape, us in self.steps:
            times.setdefault(shape, []).append(us)
        self.known = {s: median(all_us) for s, all_us in times.items() if len(all_us) >= KNOWN}
        usual = sorted(
            ((self.usual_us(shape), us) for shape, us in self.steps), key=lambda step: step[0]
        )
        self._usual = [length for length, _us in usual]
        self._ratios = [us / length for length, us in usual]
        self.random = random.Random(seed)
        self.parts = _parts(events)

    def usual_us(self, shape: Shape) -> float:
        """Return the usual time of a step in microseconds."""
        return self.known.get(shape) or max(1.0, _dot(self.cost, shape))

    def draw_us(self, shape: Shape) -> float:
        """Return the time of one step: the usual one, as fast or slow as one of its length was."""
        usual = self.usual_us(shape)
        first, last = bisect_left(self._usual, usual), bisect_right(self._usual, usual)
        wider = max(0, ALIKE - (last - first) + 1) // 2  # on both sides, if too few are as long
        first, last = max(0, first - wider), min(len(self._ratios), last + wider)
        return usual * self._ratios[self.random.randrange(first, last)]

    def _held_out_error(self) -> float:
        """Return the median relative error on every other step, fitted to the rest."""
        cost = fit(self.steps[::2])
        return median(abs(max(1.0, _dot(cost, shape)) - us) / us for shape, us in self.steps[1::2])


def observed(events: Sequence[Event]) -> list[tuple[Shape, float]]:
    """Return the shape and time in µs of each step that captured nothing.

    A step's time reaches from the end of the one before, if that one left work to do, or if this
    one was planned before it.
    """
    plans: dict[int, ev.StepPlanned] = {}
    copied: dict[int, int] = {}
    captured: set[int] = set()  # steps
    steps: list[tuple[Shape, float]] = []
    before_ns, before_rows = 0, set[str]()
    for event in events:
        if isinstance(event, ev.StepPlanned):
            plans[event.step] = event
        elif isinstance(event, ev.BlockSwappedIn | ev.BlockSwappedOut):
            copied[event.step] = copied.get(event.step, 0) + len(event.blocks)
        elif isinstance(event, ev.GraphCaptured):
            captured.add(event.step)
        elif isinstance(event, ev.StepFinished):
            plan = plans.pop(event.step, None)
            rows = plan.rows if plan is not None else []
            shape = shape_of(rows, copied.pop(event.step, 0))
            names = {row.request_id for row in rows}
            us = event.total_us
            overlaps = plan is not None and plan.ts_ns < before_ns
            if before_ns and (overlaps or names & before_rows):
                us = (event.ts_ns - before_ns) / 1e3
            if event.step not in captured and us > 0 and rows:
                steps.append((shape, us))
            before_ns, before_rows = event.ts_ns, names
    return steps


def fit(steps: Sequence[tuple[Shape, float]]) -> list[float]:
    """Return the costs in µs by which the steps are told best.

    In this order: of a step, a prompt token, a decoding row, a copied block, a prompt, and of a
    step that has any prompt. None is negative: one that came out so is fitted again as zero.
    """
    used = list(range(FEATURES))
    while True:
        cost = [0.0] * FEATURES
        for index, value in zip(used, _least_relative(steps, used), strict=True):
            cost[index] = value
        negative = [index for index in used if cost[index] < 0]
        if not negative:
            return cost
        used.remove(min(negative, key=lambda index: cost[index]))


def _least_relative(steps: Sequence[tuple[Shape, float]], used: list[int]) -> list[float]:
    """Minimize the sum of |error| / time by reweighted least squares."""
    weights = [1 / us**2 for _shape, us in steps]
    cost: list[float] = []
    for _ in range(ROUNDS):
        size = len(used)
        matrix = [[0.0] * (size + 1) for _ in range(size)]
        for (shape, us), weight in zip(steps, weights, strict=True):
            features = _features(shape)
            x = [features[index] for index in used]
            for i in range(size):
                for j in range(size):
                    matrix[i][j] += weight * x[i] * x[j]
                matrix[i][size] += weight * x[i] * us
        if PROMPT in used:
            matrix[used.index(PROMPT)][used.index(PROMPT)] *= 1 + HELD_BACK
        cost = _solve(matrix)
        for number, (shape, us) in enumerate(steps):
            features = _features(shape)
            x = [features[index] for index in used]
            error = abs(sum(a * b for a, b in zip(cost, x, strict=True)) - us)
            weights[number] = 1 / (us * max(error, us / 1000))
    return cost


def _solve(matrix: list[list[float]]) -> list[float]:
    """Solve the linear equations in place; what can't be told apart gets 0."""
    size = len(matrix)
    for i in range(size):
        best = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[best] = matrix[best], matrix[i]
        pivot = matrix[i][i]
        if abs(pivot) < 1e-12:
            matrix[i] = [0.0] * (size + 1)
            continue
        matrix[i] = [value / pivot for value in matrix[i]]
        for row in range(size):
            if row != i and matrix[row][i]:
                factor = matrix[row][i]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[i], strict=True)]
    return [row[size] for row in matrix]


def _features(shape: Shape) -> tuple[int, ...]:
    return (1, *shape, shape[3] > 0)


def _dot(cost: list[float], shape: Shape) -> float:
    return sum(a * b for a, b in zip(cost, _features(shape), strict=True))


def _parts(events: Sequence[Event]) -> tuple[float, float, float]:
    """Return the shares of a step in preparing, the model, and drawing."""
    steps = [event for event in events if isinstance(event, ev.StepFinished)]
    total = sum(step.total_us for step in steps) or 1.0
    return (
        sum(step.prepare_us for step in steps) / total,
        sum(step.forward_us for step in steps) / total,
        sum(step.sample_us for step in steps) / total,
    )
