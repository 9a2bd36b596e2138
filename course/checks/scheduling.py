"""Check step 6: the order in which requests end on one seat."""

from __future__ import annotations

from types import ModuleType

from course.exercise import Wrong
from engine.core.scheduler import Scheduler
from tests.support.core_harness import Harness


def prompt(length: int, start: int = 0) -> list[int]:
    """Make a prompt: consecutive tokens."""
    return [(start + i) % 50 for i in range(length)]


def order_under(policy: type[Scheduler], lengths: dict[str, int]) -> list[str]:
    """Return the order in which requests with prompts of these lengths end on one seat."""
    harness = Harness(options={"max_num_seqs": 1}, scheduler=policy)
    for name, length in lengths.items():
        harness.add(name, prompt(length, start=length), max_tokens=4)
    harness.run()
    harness.expect_solo_answers()
    harness.close()
    return [name for name, _index in harness.finish_reasons]


def shortest_first(module: ModuleType) -> None:
    """Run the shortest prompt first."""
    answer = order_under(module.Policy, {"long": 30, "short": 5, "middle": 12})
    if answer != ["short", "middle", "long"]:
        raise Wrong(
            "prompts of 30, 5 and 12 tokens (long, short, middle) ended in the order"
            f" {', '.join(answer)}; shortest first would be short, middle, long"
        )


def ties(module: ModuleType) -> None:
    """Run prompts of equal length in the order of their arrival."""
    answer = order_under(module.Policy, {"a": 9, "b": 9, "c": 5, "d": 9})
    if answer != ["c", "a", "b", "d"]:
        raise Wrong(
            "prompts of 9, 9, 5 and 9 tokens (a, b, c, d) ended in the order"
            f" {', '.join(answer)}; equal ones should keep their order: c, a, b, d"
        )


PARTS = (shortest_first, ties)
