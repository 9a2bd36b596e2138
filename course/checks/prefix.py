"""Check step 7: keys of blocks, and how much of a prompt they find."""

from __future__ import annotations

from types import ModuleType

from course.exercise import Wrong

PROMPT = [5, 6, 7, 8, 1, 2, 3, 4, 9, 9]


def keys(module: ModuleType) -> None:
    """Give each full block a key, and equal beginnings equal keys."""
    answer = module.chain(PROMPT, 4)
    if len(answer) != 2 or not all(isinstance(key, bytes) for key in answer):
        raise Wrong(f"10 tokens in blocks of 4 have 2 full blocks, so 2 keys of bytes: {answer!r}")
    if module.chain([*PROMPT[:8], 0, 0, 0], 4) != answer:
        raise Wrong("two prompts with the same first 8 tokens have different keys for them")
    if len({*answer, *module.chain([5, 6, 7, 9], 4)}) < 3:
        raise Wrong("blocks with different tokens have the same key")


def positions(module: ModuleType) -> None:
    """Let a key stand for all tokens before its block, too."""
    same_block = module.chain([0, 0, 0, 0, 1, 2, 3, 4], 4)[1]
    if same_block == module.chain(PROMPT, 4)[1]:
        raise Wrong(
            "the second blocks of 5 6 7 8|1 2 3 4 and 0 0 0 0|1 2 3 4 have the same key, but what"
            " stands before them differs, and so do their keys and values"
        )
    if module.chain([1, 23, 4, 5], 4) == module.chain([12, 3, 4, 5], 4):
        raise Wrong("1 23 4 5 and 12 3 4 5 have the same key: keep the numbers apart")


def salts(module: ModuleType) -> None:
    """Give other keys under another salt."""
    if set(module.chain(PROMPT, 4, "alice")) & set(module.chain(PROMPT, 4, "bob")):
        raise Wrong("the salts alice and bob give the same keys, so each could time the other")


def longest(module: ModuleType) -> None:
    """Find the known beginning, up to the first unknown block."""
    first, second = module.chain(PROMPT, 4)
    third = module.chain([*PROMPT, 9, 9], 4)[2]
    for known, expected, what in (
        ((first, second), 8, "both blocks"),
        ((first,), 4, "the first block"),
        ((second,), 0, "only the second block, which is no beginning"),
        ((first, third), 4, "the first and the third block"),
        ((), 0, "nothing"),
    ):
        answer = module.found([*PROMPT, 9, 9, 9], 4, set(known))
        if answer != expected:
            raise Wrong(f"found says {answer} tokens where {what} is known; {expected} are right")


def last_token(module: ModuleType) -> None:
    """Compute the last token of a prompt always: the next one is drawn from its logits."""
    known = set(module.chain(PROMPT, 4))
    answer = module.found(PROMPT[:8], 4, known)
    if answer != 4:
        raise Wrong(
            f"found says {answer} of a prompt of 8 tokens whose two blocks are known; it should"
            " be 4, because the last token must be computed and only whole blocks are taken"
        )


def salted(module: ModuleType) -> None:
    """Find nothing that is known under another salt only."""
    known = set(module.chain(PROMPT, 4, "alice"))
    if (answer := module.found(PROMPT, 4, known, "bob")) != 0:
        raise Wrong(f"found says {answer} for bob, although only alice has sent the prompt")
    if (answer := module.found(PROMPT, 4, known, "alice")) != 8:
        raise Wrong(f"found says {answer} for alice, who has sent the prompt before: 8 are right")


PARTS = (keys, positions, salts, longest, last_token, salted)
