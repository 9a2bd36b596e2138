"""Step 9. Give preemption a cost of your own.

A preempted sequence gives its blocks back. Its keys and values return in one of two ways: computed
again, or copied to the host and back. `--preemption-mode auto` takes the cheaper way. Use a rule
of your own instead: sequences of fewer than 8 tokens in the cache are always recomputed, longer
ones always swapped. Begin with `Scheduler._preemption_choice` in engine/core/scheduler.py.
"""

from __future__ import annotations

from engine.core.preemption import PreemptionCosts


class Costs(PreemptionCosts):
    def recompute_ms(self, num_tokens: int) -> float:
        """Estimate what computing so many tokens again costs, in milliseconds."""
        return super().recompute_ms(num_tokens)
