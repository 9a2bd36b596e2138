"""Count the fewest steps in which any look-up could have written a text: what the text allows.

A look-up copies what followed some place at which the last token stood before. Here every such
place is tried, in each step, and the one is taken whose copy agrees longest with the text as it
then went on. No look-up knows that. After a part of a copy, the rest of it can still be copied, so
that no other choice needs fewer steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def fewest_steps(prompt: Sequence[int], answer: Sequence[int], most: int) -> int:
    """Return the steps for an answer; the first token comes with the prompt's. most: proposals."""
    text = [*prompt, *answer]
    followers: defaultdict[int, list[int]] = defaultdict(list)  # of each token: places behind it
    followed = 0
    count, steps = len(prompt) + 1, 1
    while count < len(text):
        for place in range(followed, count - 1):
            followers[text[place]].append(place + 1)
        followed = count - 1
        room = min(most, len(text) - count - 1)  # one token more is drawn behind proposals
        copied = max(
            (_equal(text, at, count, room) for at in followers[text[count - 1]]), default=0
        )
        count += copied + 1
        steps += 1
    return steps


def _equal(text: list[int], place: int, other: int, most: int) -> int:
    """Return how many tokens, up to `most`, are equal from two places on."""
    count = 0
    while count < most and text[place + count] == text[other + count]:
        count += 1
    return count
