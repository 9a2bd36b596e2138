"""One solution of step 9."""

from __future__ import annotations

from engine.core.preemption import PreemptionCosts

LONG = 8  # tokens


class Costs(PreemptionCosts):
    def recompute_ms(self, num_tokens: int) -> float:
        return float("inf") if num_tokens >= LONG else 0.0
