"""Define what a chapter can draw: five kinds of pictures, as plain data.

`terminal` draws them with characters, `svg` with shapes. A colour is a number: an entry of
`PALETTE`, or `EMPTY` for what nobody uses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Union

PALETTE = (
    "#4c8fe0", "#e0803a", "#3fa66b", "#d0608c", "#8d78d8", "#b8952a", "#2fa3ab", "#a27556",
)  # fmt: skip
"""Colours that are legible on white and on black."""

EMPTY = -1
Legend = list[tuple[str, int]]  # (name, colour)


def colour(number: int) -> int:
    """Return a palette entry for the owner with this number; owners beyond it share colours."""
    return number % len(PALETTE)


@dataclass
class Bar:
    """Describe one horizontal bar, made of parts that lie end to end."""

    label: str
    parts: list[tuple[float, int]]  # (value, colour)
    text: str = ""  # behind the bar; default: the sum, in the drawing's unit
    spread: tuple[float, float] | None = None  # lowest and highest try, drawn as whiskers

    @property
    def total(self) -> float:
        return sum(value for value, _ in self.parts)

    @property
    def reach(self) -> float:
        """Return how far the bar and its whiskers go."""
        return max(self.total, self.spread[1] if self.spread else 0.0)


@dataclass
class Bars:
    """Show bars of one unit on one scale, which starts at 0."""

    title: str
    unit: str
    bars: list[Bar]
    legend: Legend = field(default_factory=list)


@dataclass
class Series:
    """Describe one line: points from left to right."""

    name: str
    points: list[tuple[float, float]]


@dataclass
class Lines:
    """Show lines over one x axis. Values of a logarithmic axis are above 0."""

    title: str
    x_name: str
    y_name: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False

    def range(self, axis: int) -> tuple[float, float]:
        """Return the smallest and largest value of x (0) or y (1); a linear y axis starts at 0."""
        values = self.values(axis)
        low = min(values)
        if axis == 1 and not self.log_y:
            low = min(0.0, low)
        return low, max(values)

    def values(self, axis: int) -> list[float]:
        """Return all values of x (0) or y (1)."""
        return [point[axis] for line in self.series for point in line.points]


@dataclass
class Cells:
    """Show rows of equal cells, each in the colour of its owner: memory, block by block."""

    title: str
    rows: list[tuple[str, list[int]]]  # (label, colours)
    legend: Legend = field(default_factory=list)


@dataclass
class Lanes:
    """Show who did what, when: one lane for each, spans of [start, end) on a common axis from 0."""

    title: str
    x_name: str
    lanes: list[tuple[str, list[tuple[float, float, int]]]]  # (label, (start, end, colour))
    legend: Legend = field(default_factory=list)
    at_least: float = 0.0  # where the axis ends if nothing lasts longer: two drawings, one scale

    @property
    def end(self) -> float:
        return max(self.at_least, *(span[1] for _, spans in self.lanes for span in spans))


@dataclass
class Pieces:
    """Show texts cut into their tokens."""

    title: str
    lines: list[tuple[str, list[str]]]  # (label, the text of each token)


def printable(token: str) -> str:
    """Write a token's text on one line.

    ⏎ stands for a line's end, ▯ for what has no shape (half a character, control characters).
    """
    if token.startswith("bytes:"):
        return "▯"
    return "".join(
        "⏎" if letter == "\n" else letter if letter.isprintable() else "▯" for letter in token
    )


Drawing = Union[Bars, Lines, Cells, Lanes, Pieces]  # noqa: UP007 - Python 3.10 keeps it an alias
