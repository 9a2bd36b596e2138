"""Choose how a preempted request's K/V return: computed again, or copied out and in (rule 4).

Both costs are measured on this machine while it runs: the steps give the cost of computing a token,
and the worker measures copying a block at start.
"""

from __future__ import annotations

from dataclasses import dataclass

SMOOTHING = 0.2  # weight of the newest step
PREFILL_STEP = 16  # steps with at least as many tokens show the cost of a token in bulk


@dataclass
class PreemptionCosts:
    """Estimate the later cost of releasing a request's blocks now, in milliseconds."""

    swap_us_per_block: float  # one way; 0 = there is no host pool
    compute_us_per_token: float = 0.0  # 0 = not measured yet

    def observe_step(self, num_tokens: int, forward_us: float) -> None:
        """Learn from a finished step.

        Small steps count only until a large one was seen: their cost a token is higher.
        """
        if num_tokens == 0:
            return
        cost = forward_us / num_tokens
        if self.compute_us_per_token == 0.0 or num_tokens < PREFILL_STEP:
            if self.compute_us_per_token == 0.0 or cost < self.compute_us_per_token:
                self.compute_us_per_token = cost
        else:
            self.compute_us_per_token += SMOOTHING * (cost - self.compute_us_per_token)

    def recompute_ms(self, num_tokens: int) -> float:
        return num_tokens * self.compute_us_per_token / 1e3

    def swap_ms(self, num_blocks: int) -> float:
        return 2 * num_blocks * self.swap_us_per_block / 1e3
