"""Check step 11: guesses from a text, and verification that doesn't change what is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import ModuleType

from course.exercise import Wrong

GUESSES = (  # text, longest, count → guess, what for
    ([1, 2, 3, 9, 1, 2, 3], 3, 2, [9, 1], "1 2 3 was followed by 9 1"),
    ([1, 2, 3, 9, 1, 2, 3], 3, 9, [9, 1, 2, 3], "no more is known than what followed"),
    ([7, 2, 3, 4, 5, 2, 3], 3, 1, [4], "5 2 3 is new, 2 3 was followed by 4"),
    ([2, 3, 4, 2, 3, 5, 2, 3], 2, 1, [5], "2 3 was last followed by 5"),
    ([1, 2, 3, 4, 9, 3, 5, 2, 3], 2, 1, [4], "2 3 occurred before, so 3 alone doesn't count"),
    ([6, 6, 6], 2, 3, [6], "6 6 occurred before, one place earlier"),
    ([1, 2, 3, 4], 3, 2, [], "nothing occurs twice"),
    ([8], 3, 2, [], "one token has no earlier one"),
)
ROWS = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.0, 0.3], [0.25, 0.25, 0.5, 0.0]]
SPACED = 60  # numbers for each draw


def guesses(module: ModuleType) -> None:
    """Guess by the longest end of the text that occurred before."""
    for tokens, longest, count, expected, why in GUESSES:
        if (answer := list(module.propose(list(tokens), longest, count))) != expected:
            raise Wrong(
                f"propose({tokens}, {longest}, {count}) guesses {answer}, not {expected}: {why}"
            )


def greedy(module: ModuleType) -> None:
    """Keep guesses up to the first that differs from the model's token; then give that token."""
    for draft, greatest, expected in (
        ([4, 5, 6], [4, 5, 6, 7], [4, 5, 6, 7]),
        ([4, 5, 6], [4, 8, 6, 7], [4, 8]),
        ([4, 5, 6], [1, 5, 6, 7], [1]),
        ([], [3], [3]),
    ):
        if (answer := list(module.accept_greedy(list(draft), list(greatest)))) != expected:
            raise Wrong(
                f"the draft {draft} beside the model's {greatest} gives {answer}, not {expected}"
            )


def _numbers(*values: float) -> Callable[[], float]:
    """Return what gives these numbers one after another, and then 0."""
    left = list(values)
    return lambda: left.pop(0) if left else 0.0


def drawn(module: ModuleType) -> None:
    """Accept a guess with its probability; draw one more token when all are accepted."""
    rows = [list(row) for row in ROWS]
    for numbers, expected, what in (
        ((0.4, 0.5, 0.1), [0, 1, 0], "both guesses are accepted, and one token is drawn"),
        ((0.4, 0.7, 0.1), [0, 0], "the second guess isn't accepted"),
        ((0.5, 0.0), [1], "0.5 isn't less than the probability 0.5"),
        ((0.9, 0.9), [3], "the first guess isn't accepted"),
    ):
        answer = list(module.accept_drawn([0, 1], rows, _numbers(*numbers)))
        if answer != expected:
            raise Wrong(
                f"the draft [0, 1] with the numbers {numbers} gives {answer}, not {expected}:"
                f" {what}"
            )


def distribution(module: ModuleType) -> None:
    """Distribute the first token as the model does, whatever was guessed."""
    spaced = [(i + 0.5) / SPACED for i in range(SPACED)]
    for row in ROWS:
        for guess in range(4):
            counts = Counter(
                module.accept_drawn([guess], [list(row), list(row)], _numbers(a, b, 0.0))[0]
                for a in spaced
                for b in spaced
            )
            for token, wanted in enumerate(row):
                answer = counts[token] / SPACED**2
                if abs(answer - wanted) > 1.5 / SPACED:
                    raise Wrong(
                        f"of the probabilities {row} with token {guess} guessed, token {token} is"
                        f" drawn in {answer:.1%}, not {wanted:.0%}: a guess must not change what"
                        " is drawn"
                    )


PARTS = (guesses, greedy, drawn, distribution)
