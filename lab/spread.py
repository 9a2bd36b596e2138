"""Say how far repeated measurements lie apart, and whether a difference is larger than that."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lab.chapter import quantity


def shown(tries: Sequence[float], unit: str) -> str:
    """Write the lowest and the highest of several tries; nothing for one.

    A unit that every figure has stands once; seconds and bytes choose one for each.
    """
    if len(tries) < 2:
        return ""
    if unit not in ("s", "B", "share", "×"):
        return f"{quantity(min(tries), '')} – {quantity(max(tries), unit)}"
    return f"{quantity(min(tries), unit)} – {quantity(max(tries), unit)}"


def overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether the ranges of two series of tries have a value in common."""
    return min(one) <= max(other) and min(other) <= max(one)


def compared(
    name: str, one: Sequence[float], other_name: str, other: Sequence[float], unit: str = "s"
) -> str:
    """Compare two by their medians, or say that the noise exceeds what lies between them."""
    first, second = statistics.median(one), statistics.median(other)
    figures = f"{name}: {quantity(first, unit)}, {other_name}: {quantity(second, unit)}"
    if len(one) < 2 or len(other) < 2:
        return f"{figures}, in one try each: how large the noise is, is not known"
    if overlap(one, other):
        return (
            f"{figures}, but tries of the same lie further apart than that ({shown(one, unit)} and"
            f" {shown(other, unit)}): the noise of this machine, now, exceeds the effect"
        )
    less, more = (name, other_name) if first < second else (other_name, name)
    ratio = quantity(max(first, second) / max(1e-12, min(first, second)), "×")
    return f"{figures}; {less} takes less, in every try, {more} {ratio} as much"
