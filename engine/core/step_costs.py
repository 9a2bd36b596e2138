"""Learn how the time of a step depends on its rows, from the steps themselves.

Only steps in which every row computes one token count. Other programs make single steps slow, so
the time of a number of rows is the shortest of its last steps.
"""

from __future__ import annotations

AGING = 1.01
"""A time grows by this with each step that took longer, so that it follows longer contexts."""
FIRST_SHARE = 0.1
"""What a row is thought to add to a step, as a share of it, until steps of two sizes are known."""
LEAST_SHARE = 0.04
"""What a row adds at least, as a share of what a step takes for each of its rows. Where other
programs run, steps of many rows may seem as short as those of few; without this, proposals that are
hardly ever right would then be tried."""

ENOUGH = 8
"""Steps with a number of rows from which on their shortest counts: that of two is too long."""
LASTING = 256
"""Steps after which a number of rows that came no more is unknown again, as the machine may be
less busy now: else what once seemed dear would never be tried again."""


class StepCosts:
    """Keep the times of steps by their number of rows."""

    def __init__(self) -> None:
        self._us: dict[int, float] = {}  # by number of rows; 0.0: came once
        self._counts: dict[int, int] = {}
        self._last: dict[int, int] = {}  # when each number came last
        self._steps = 0
        self._lines: dict[int, tuple[float, float]] = {}  # made of these times

    def observe(self, num_rows: int, us: float) -> None:
        """Take the time of a step. The first with a number of rows may capture it: not counted."""
        known = self._us.get(num_rows)
        self._steps += 1
        if self._steps - self._last.get(num_rows, self._steps) > LASTING:
            known, self._counts[num_rows] = 0.0, 0
        self._last[num_rows] = self._steps
        self._counts[num_rows] = self._counts.get(num_rows, 0) + 1
        if known is None:
            self._us[num_rows] = 0.0
            return
        self._us[num_rows] = min(known * AGING, us) if known else us
        self._lines.clear()

    @property
    def known(self) -> bool:
        """Return whether any number of rows came often enough to count."""
        return any(count > ENOUGH for count in self._counts.values())

    def of(self, num_rows: int) -> float:
        """Return the µs of steps with exactly this number of rows; 0.0 if they are unknown."""
        return self._us[num_rows] if self._is_known(num_rows) else 0.0

    def line(self, num_rows: int) -> tuple[float, float]:
        """Return µs (fixed, for each row) of steps with about this number of rows.

        They are fitted to the times of half as many rows to twice as many and sixteen; to those of
        exactly as many only if few others are known, as one row more may cost more than each later.
        """
        line = self._lines.get(num_rows)
        if line is None:
            line = self._lines[num_rows] = self._fitted(num_rows)
        return line

    def _is_known(self, num_rows: int) -> bool:
        return (
            self._counts.get(num_rows, 0) > ENOUGH and self._steps - self._last[num_rows] <= LASTING
        )

    def _fitted(self, num_rows: int) -> tuple[float, float]:
        known = [(rows, us) for rows, us in self._us.items() if self._is_known(rows)]
        near = [(r, us) for r, us in known if num_rows <= 2 * r and r <= 2 * num_rows + 16]
        others = [(r, us) for r, us in near if r != num_rows]
        if len(others) >= 2:
            near = others
        elif len(near) < 2:
            near = known
        if len(near) < 2:
            us = near[0][1] if near else 1.0
            rows = near[0][0] if near else num_rows
            each = us * FIRST_SHARE / (1 + FIRST_SHARE * (rows - 1))
            return us - each * rows, each
        mean_rows = sum(rows for rows, _ in near) / len(near)
        mean_us = sum(us for _, us in near) / len(near)
        covariance = sum((rows - mean_rows) * (us - mean_us) for rows, us in near)
        variance = sum((rows - mean_rows) ** 2 for rows, _ in near)
        rows, us = min(near)
        least = LEAST_SHARE * us / rows
        each = max(least, covariance / variance)
        return mean_us - each * mean_rows, each
