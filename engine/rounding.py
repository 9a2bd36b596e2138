"""Divide whole numbers upwards."""

from __future__ import annotations


def ceil_div(number: int, by: int) -> int:
    """Return number / by, rounded up: how many pieces of size `by` hold `number` things."""
    return -(-number // by)
