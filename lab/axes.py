"""Place a value on an axis, linear or logarithmic."""

from __future__ import annotations

import math
from dataclasses import dataclass


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

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value
