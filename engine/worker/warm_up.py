"""Run steps before the first request, so that first-time allocation, compiling and reading is done.

Their rows are zeros and nobody reads their outputs; the recorder doesn't see them.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.core.messages import NewBlocks, NewRow, StepOutput, StepPlan
from engine.placeholders import UNKNOWN
from engine.rounding import ceil_div
from engine.sampling_params import SamplingParams
from engine.trace.events import StepRow

SHORT = 32  # tokens
LONG_ENOUGH_S = 0.05
NAME = "warm-up"


def warm_up(
    execute: Callable[[StepPlan], StepOutput],
    longest: int,
    block_size: int,
    long_prompts: bool,
    drafted: int = 0,
) -> None:
    """Compute a short prompt, a random and a greedy token, and if `long_prompts`, longer prompts.

    These double in length until one takes `LONG_ENOUGH_S`: memory that a process gets for the first
    time costs as much as computing with it while prompts are short.

    longest: tokens of the longest prompt that one step can take; the cache has blocks for them.
    drafted: tokens that the draft model is to propose; 0: there is none.
    """
    blocks = list(range(ceil_div(longest, block_size)))

    def compute(length: int) -> float:
        plan = StepPlan(step=0, rows=[])
        add_dummy(plan, NAME, length, blocks)
        return execute(plan).forward_us / 1e6

    def forget() -> None:
        execute(StepPlan(step=0, rows=[], dropped=[NAME]))

    length = min(SHORT, longest)
    if length > 1:
        compute(length - 1)
        execute(StepPlan(step=0, rows=[StepRow(NAME, length - 1, 1, 1)]))
        forget()
    if drafted and length > drafted + 1:
        first = length - drafted
        compute(first - 1)
        rows = [StepRow(NAME, first - 1 + j, 1, 1) for j in range(drafted + 1)]
        execute(StepPlan(step=0, rows=rows, proposed={NAME: [UNKNOWN] * drafted}))
        forget()
    taken_s = 0.0
    while long_prompts and length < longest and taken_s < LONG_ENOUGH_S:
        length = min(2 * length, longest)
        taken_s = compute(length)
        forget()


def add_dummy(plan: StepPlan, request_id: str, length: int, blocks: list[int]) -> None:
    """Add a prompt of zeros to a plan, in `blocks`, which have room for it."""
    plan.rows.append(StepRow(request_id, 0, length, 1))
    plan.tables[request_id] = NewBlocks(0, blocks)
    plan.new[request_id] = NewRow(
        token_ids=[0] * length,
        num_prompt_tokens=length,
        params=SamplingParams(top_k=5, top_p=0.9, seed=0),  # to launch every kernel
        seed=0,
        stop_token_ids=[],
    )
