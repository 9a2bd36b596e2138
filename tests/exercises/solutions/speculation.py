"""One solution of step 11."""

from __future__ import annotations

from collections.abc import Callable


def propose(tokens: list[int], longest: int, count: int) -> list[int]:
    for n in range(min(longest, len(tokens) - 1), 0, -1):
        end = tokens[-n:]
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == end:
                return tokens[start + n : start + n + count]
    return []


def accept_greedy(draft: list[int], greatest: list[int]) -> list[int]:
    kept = 0
    while kept < len(draft) and draft[kept] == greatest[kept]:
        kept += 1
    return [*draft[:kept], greatest[kept]]


def accept_drawn(
    draft: list[int], probabilities: list[list[float]], uniform: Callable[[], float]
) -> list[int]:
    given = []
    for guess, row in zip(draft, probabilities, strict=False):
        if uniform() < row[guess]:
            given.append(guess)
            continue
        rest = [0.0 if token == guess else p for token, p in enumerate(row)]
        return [*given, _drawn(rest, uniform())]
    return [*given, _drawn(probabilities[len(draft)], uniform())]


def _drawn(weights: list[float], number: float) -> int:
    total, so_far = sum(weights), 0.0
    for token, weight in enumerate(weights):
        so_far += weight / total
        if so_far > number:
            return token
    return max(token for token, weight in enumerate(weights) if weight)
