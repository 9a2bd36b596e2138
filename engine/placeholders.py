"""Name the numbers that stand in place of a token id: negative ones, outside of any vocabulary."""

from __future__ import annotations

NO_TOKEN = -1
"""Nothing could be drawn: the row's logits have no finite maximum, or one of them is NaN."""
UNKNOWN = -2
"""Drawn on the device by a step in flight; the host doesn't know it yet."""
