"""Check step 8: a popular prompt is still cached after a flood of others."""

from __future__ import annotations

from functools import partial
from types import ModuleType

from course.checks.scheduling import prompt
from course.exercise import Wrong
from engine.core.block_pool import BlockPool
from engine.core.scheduler import Scheduler
from engine.trace.events import RequestAdmitted
from tests.support.core_harness import Harness


def tokens_found_again(pool: type[BlockPool], times: int) -> int:
    """Return how much of a prompt that was sent so often is still cached after six others."""
    scheduler = partial(Scheduler, pool=pool)
    harness = Harness(num_blocks=8, block_size=4, max_model_len=32, scheduler=scheduler)
    popular = prompt(13)
    for i in range(times):
        harness.add(f"popular-{i}", popular, max_tokens=1)
        harness.run()
    for i in range(6):  # each fills half of the pool, once
        harness.add(f"once-{i}", prompt(13, start=15 + 5 * i), max_tokens=1)
        harness.run()
    harness.add("again", popular, max_tokens=1)
    harness.run()
    harness.expect_solo_answers()
    admitted = [e for e in harness.recorded(RequestAdmitted) if e.request_id == "again"]
    harness.close()
    return int(admitted[0].num_cached_tokens)


def popular(module: ModuleType) -> None:
    """Keep what was hit often, while others come and go."""
    answer = tokens_found_again(module.Pool, 4)
    if answer != 12:
        raise Wrong(
            "a prompt of 13 tokens was sent four times, then six others once each: only"
            f" {answer} of its tokens are still cached, 12 should be"
        )


def unpopular(module: ModuleType) -> None:
    """Evict what was never hit, as before."""
    answer = tokens_found_again(module.Pool, 1)
    if answer != 0:
        raise Wrong(
            "a prompt that was sent once, and never hit, still has"
            f" {answer} tokens cached after six others: it should have made room"
        )


PARTS = (popular, unpopular)
