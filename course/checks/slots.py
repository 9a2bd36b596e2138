"""Check step 2: slots of tokens, and the blocks that a sequence needs to grow."""

from __future__ import annotations

from types import ModuleType

from course.exercise import Wrong

CASES = (  # table, block size, start, tokens → slots
    (([3], 4, 0, 3), [12, 13, 14]),
    (([3], 4, 2, 1), [14]),
    (([3, 0], 4, 0, 6), [12, 13, 14, 15, 0, 1]),
    (([7, 2, 5], 4, 3, 6), [31, 8, 9, 10, 11, 20]),
    (([1, 9], 16, 16, 1), [144]),
)
GROWTH = (((0, 5, 4), 2), ((3, 1, 4), 0), ((4, 1, 4), 1), ((4, 0, 4), 0), ((7, 30, 16), 2))


def token_slots(module: ModuleType) -> None:
    """Give the slots of consecutive tokens, whose blocks lie anywhere."""
    for arguments, expected in CASES:
        answer = list(module.slots(*arguments))
        if answer != expected:
            table, size, start, count = arguments
            raise Wrong(
                f"with the table {table} of blocks of {size}, the tokens at {start} …"
                f" {start + count - 1} are in the slots {expected}, not {answer}"
            )


def growth(module: ModuleType) -> None:
    """Count the blocks that further tokens need; the last block may have room."""
    for (have, more, size), expected in GROWTH:
        answer = module.blocks_to_add(have, more, size)
        if answer != expected:
            raise Wrong(
                f"a sequence of {have} tokens in blocks of {size} needs {expected} blocks for"
                f" {more} more, not {answer}"
            )


PARTS = (token_slots, growth)
