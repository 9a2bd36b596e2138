"""Step 11. Guess tokens, and verify the guesses.

A step with five tokens of a sequence takes little longer than one with one, because both read all
weights once. So guess the next tokens cheaply, compute them all in one step, and keep those that
the model would have drawn itself. The text doesn't change, only its pace does.

`propose` guesses from the text alone (an n-gram proposer); `accept_greedy` and `accept_drawn`
verify: greedily, and for a draw (Leviathan et al., "Fast Inference from Transformers via
Speculative Decoding", 2022, with a draft that is certain of its guesses).
"""

from __future__ import annotations

from collections.abc import Callable


def propose(tokens: list[int], longest: int, count: int) -> list[int]:
    """Guess up to `count` tokens that follow.

    Take the last n tokens, for n = longest, longest − 1, … 1, until they have occurred before in
    the text. The guess is what followed where they occurred last before the end. No guess: [].
    """
    raise NotImplementedError


def accept_greedy(draft: list[int], greatest: list[int]) -> list[int]:
    """Return the tokens that this step gives, at least one.

    greatest[i]: the model's own token after the text and draft[:i]; one more than in the draft.
    """
    raise NotImplementedError


def accept_drawn(
    draft: list[int], probabilities: list[list[float]], uniform: Callable[[], float]
) -> list[int]:
    """Return the tokens that this step gives, distributed as if each had been drawn by itself.

    probabilities[i]: of each token after the text and draft[:i]. Each `uniform()` is a new number
    in [0, 1). Accept draft[i] if uniform() is less than its probability. At the first that isn't
    accepted, draw from the probabilities of the other tokens, shared out anew, by adding them up in
    order until the sum is greater than uniform(), and end. If all are accepted, draw one more.
    """
    raise NotImplementedError
