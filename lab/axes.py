"""Place a value on an axis, linear or logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FEW = 8  # points of a line that are marked themselves
CLOSE = 0.06  # of an axis: marks that are nearer than this would touch


@dataclass(frozen=True)
class Axis:
    """Map values from `low` to `high`; a logarithmic axis has only values above 0."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return 0 at the low end, 1 at the high end."""
        low, high, value = (self._scaled(x) for x in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.0

    def value(self, place: float) -> float:
        """Invert `place`."""
        low, high = self._scaled(self.low), self._scaled(self.high)
        scaled = low + place * (high - low)
        return 10**scaled if self.log else scaled

    def ticks(self, values: Sequence[float] = ()) -> list[float]:
        """Return where to mark the axis: at the points' own values, if these are a few counts, else
        at round ones.
        """
        own = sorted(set(values))
        if 0 < len(own) <= FEW and all(float(value).is_integer() for value in own):
            places = [self.place(value) for value in own]
            if all(b - a > CLOSE for a, b in pairwise(places)):
                return own
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            marks = [step * 10.0**decade for decade in decades for step in steps]
        else:
            width = (self.high - self.low) / 4 or 1.0
            decade = 10.0 ** math.floor(math.log10(width))
            step = min((s * decade for s in (1, 2, 5, 10)), key=lambda s: abs(s - width))
            first = math.ceil(self.low / step - 1e-9)
            marks = [step * number for number in range(first, first + 12)]
        inside = [mark for mark in marks if self.low * 0.999 <= mark <= self.high * 1.001]
        return inside if len(inside) > 1 else [self.low, self.high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value
