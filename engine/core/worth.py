"""Choose how many proposals of each sequence make tokens come faster.

A step with r rows takes about `fixed + each · r`. A proposal that is right with probability q adds
q tokens for one row more, so tokens per second grow while

    q > each · (tokens expected so far) / (time of the step so far).

The j-th proposal of a sequence counts only if those before it are right: with probability q^j, if
all have the same q.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heapreplace
from typing import NamedTuple


class BareStep(NamedTuple):
    """Describe a step before proposals: its rows, its times, and the rows that may be added."""

    num_rows: int
    fixed: float  # µs
    each: float  # µs for a row
    room: int
    measured: float = 0.0  # µs without proposals; 0.0: unknown

    @property
    def time(self) -> float:
        """Return the time that those with some rows more let expect."""
        return self.fixed + self.each * self.num_rows

    @property
    def bare(self) -> float:
        """Return the time without proposals. With the first one more than a row may be added."""
        return self.measured or self.time

    @property
    def least_chance(self) -> float:
        """Return which chance of being right a first proposal must exceed to make tokens faster."""
        return self.each * self.num_rows / self.time if self.time > 0 else 1.0

    def pays(self, chance: float) -> bool:
        """Return whether a proposal that is right with this probability makes tokens faster."""
        return chance > self.least_chance


def most_probable(step: BareStep, chances: Sequence[Sequence[float]]) -> list[int]:
    """Add the most probable proposals first, until the next one wouldn't pay. None if all don't.

    chances: of each sequence, how probable it is that its first proposal counts, and each further
    one: that all up to it are right.
    """
    counts = [0] * len(chances)
    tokens, time = float(step.num_rows), step.time
    next_ones = [(-its[0], place) for place, its in enumerate(chances) if its]
    heapify(next_ones)
    for _ in range(step.room):
        if not next_ones:
            break
        chance, place = -next_ones[0][0], next_ones[0][1]
        if chance * time <= step.each * tokens:
            break
        counts[place] += 1
        tokens, time = tokens + chance, time + step.each
        if counts[place] < len(chances[place]):
            heapreplace(next_ones, (-chances[place][counts[place]], place))
        else:
            heappop(next_ones)
    if tokens * step.bare <= step.num_rows * time:
        return [0] * len(chances)
    return counts


PASSES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of passes that are compared. Each costs a look at every sequence, in every step, and
beyond the first ones the best of them is about as good as the number between."""


def by_passes(
    step: BareStep,
    shares: Sequence[float],
    most: Sequence[int],
    pass_us: Callable[[int], float],
) -> list[int]:
    """Choose for how many sequences a draft model computes how many passes.

    A pass costs nearly the same for one sequence as for some, so all get the same number, the most
    promising ones first. pass_us: the time of a pass for so many sequences.
    """
    order = sorted((i for i in range(len(shares)) if most[i]), key=lambda i: -shares[i])
    best, chosen = (step.num_rows / step.bare if step.bare else 0.0), (0, 0)
    longest = max(most, default=0)
    compared = [passes for passes in PASSES if passes < longest] + [longest]
    expected = [0.0] * len(compared)  # tokens added, by the number of passes
    rows = [0] * len(compared)
    for count, place in enumerate(order, 1):
        share, each_pass = shares[place], pass_us(count)
        for number, passes in enumerate(compared):
            proposed = min(passes, most[place])
            expected[number] += _right(share, proposed)
            rows[number] += proposed
            if rows[number] > step.room:
                break
            time = step.time + step.each * rows[number] + each_pass * passes
            if step.time and (step.num_rows + expected[number]) / time > best:
                best, chosen = (step.num_rows + expected[number]) / time, (count, passes)
    counts = [0] * len(shares)
    for place in order[: chosen[0]]:
        counts[place] = min(chosen[1], most[place])
    return counts


def _right(share: float, proposed: int) -> float:
    """Return how many of so many proposals are right on average: q + q² + … ."""
    return proposed if share == 1.0 else share * (1.0 - share**proposed) / (1.0 - share)
