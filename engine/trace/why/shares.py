"""Divide whole nanoseconds among causes, so that the parts sum to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")


def divide(whole: int, weights: Mapping[K, int]) -> dict[K, int]:
    """Divide `whole` in proportion to the weights, into integers that sum to it.

    The shares that lost most by rounding down get what is left, one each. Without any weight, the
    result is empty.
    """
    total = sum(weights.values())
    if not total:
        return {}
    shares = {key: whole * weight // total for key, weight in weights.items()}
    left = whole - sum(shares.values())
    lost = sorted(weights, key=lambda key: whole * weights[key] % total, reverse=True)
    for key in lost[:left]:
        shares[key] += 1
    return shares


def fit_in(whole: int, parts: Mapping[K, int], rest: K) -> dict[K, int]:
    """Give each part its own length, and `rest` what is left of `whole`.

    If the parts are longer than the whole (steps overlap), they are scaled to fill it.
    """
    taken = sum(parts.values())
    if taken > whole:
        return divide(whole, parts)
    shares = dict(parts)
    shares[rest] = shares.get(rest, 0) + whole - taken
    return shares
