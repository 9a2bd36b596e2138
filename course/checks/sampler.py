"""Check step 10: draws at evenly spaced numbers count out the distribution, without chance."""

from __future__ import annotations

import math
from collections import Counter
from types import ModuleType

from course.exercise import Wrong

LOGITS = [1.0, 3.0, -2.0, 2.0, 2.5]
SPACED = [(i + 0.5) / 2000 for i in range(2000)]


def shares(weights: dict[int, float]) -> dict[int, float]:
    """Return each weight's share of the sum."""
    total = sum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def _expect(
    module: ModuleType, expected: dict[int, float], temperature: float, top_k: int, top_p: float
) -> None:
    """Draw at all spaced numbers, and compare how often each token comes."""
    settings = f"temperature {temperature:g}, top_k {top_k}, top_p {top_p:g}"
    counts = Counter(module.draw(list(LOGITS), temperature, top_k, top_p, u) for u in SPACED)
    for token in range(len(LOGITS)):
        answer, wanted = counts[token] / len(SPACED), expected.get(token, 0.0)
        if abs(answer - wanted) > 0.002:
            raise Wrong(
                f"of the logits {LOGITS} with {settings}, token {token} is drawn in {answer:.1%};"
                f" right would be {wanted:.1%}"
            )
    low, high = sorted(expected)[0], sorted(expected)[-1]
    for uniform, wanted in ((0.0, low), (1 - 1e-9, high)):
        if (answer := module.draw(list(LOGITS), temperature, top_k, top_p, uniform)) != wanted:
            raise Wrong(
                f"with {settings}, uniform {uniform:.6g} draws token {answer}, not {wanted}: go"
                " through the tokens in the order of their numbers"
            )


def greedy(module: ModuleType) -> None:
    """Take the greatest logit at temperature 0, of equal ones the lowest token."""
    for logits, expected in ((LOGITS, 1), ([0.0, 4.0, 4.0], 1), ([-1.0, -5.0], 0)):
        if (answer := module.draw(list(logits), 0.0, 0, 1.0, 0.99)) != expected:
            raise Wrong(f"greedy takes token {answer} of the logits {logits}, not {expected}")


def temperature(module: ModuleType) -> None:
    """Divide the logits by the temperature before they become probabilities."""
    for value in (1.0, 0.5, 2.0):
        weights = {token: math.exp(x / value) for token, x in enumerate(LOGITS)}
        _expect(module, shares(weights), value, 0, 1.0)


def large(module: ModuleType) -> None:
    """Avoid an overflow of large logits."""
    try:
        answer = module.draw([1000.0, 0.0, 990.0], 1.0, 0, 1.0, 0.5)
    except OverflowError:
        raise Wrong(
            "exp(1000) is too large for a float: subtract the greatest logit first"
        ) from None
    if answer != 0:
        raise Wrong(f"of the logits 1000, 0, 990 token {answer} is drawn at 0.5, not 0")


def top_k(module: ModuleType) -> None:
    """Draw only the k greatest."""
    weights = {token: math.exp(LOGITS[token]) for token in (1, 4, 3)}
    _expect(module, shares(weights), 1.0, 3, 1.0)
    _expect(module, {1: 1.0}, 1.0, 1, 1.0)
    _expect(module, shares({t: math.exp(x) for t, x in enumerate(LOGITS)}), 1.0, 9, 1.0)


def top_p(module: ModuleType) -> None:
    """Draw only the most probable, the fewest whose sum is at least p."""
    everything = shares({token: math.exp(x) for token, x in enumerate(LOGITS)})
    _expect(module, {1: 1.0}, 1.0, 0, everything[1] - 0.01)
    two = shares({token: everything[token] for token in (1, 4)})
    _expect(module, two, 1.0, 0, everything[1] + 0.01)


def both(module: ModuleType) -> None:
    """Count for top_p the probabilities that top_k has left."""
    kept = shares({token: math.exp(LOGITS[token]) for token in (1, 4, 3)})
    two = shares({token: kept[token] for token in (1, 4)})
    _expect(module, two, 1.0, 3, kept[1] + kept[4] - 0.01)


PARTS = (greedy, temperature, large, top_k, top_p, both)
