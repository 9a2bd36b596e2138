"""Define a chapter: an idea, expectations that are stated before the run, and the outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lab.drawings import Drawing

if TYPE_CHECKING:
    from lab.workbench import Workbench


class CannotShow(Exception):
    """Report that this machine or this model can't show the chapter; the message says why."""


@dataclass(frozen=True)
class Expectation:
    """State one figure that the chapter expects, before it runs."""

    key: str  # `Outcome.measured` has the figure that was measured under the same key
    what: str
    value: float
    unit: str  # see `quantity`
    why: str  # the sum that it comes from


@dataclass
class Outcome:
    """Hold what a run measured and found."""

    measured: dict[str, float] = field(default_factory=dict)  # one for each expectation
    findings: list[str] = field(default_factory=list)  # sentences, with their own figures
    drawings: list[Drawing] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)  # what this machine can't show, and why
    tries: dict[str, list[float]] = field(default_factory=dict)  # of a figure measured repeatedly


@dataclass(frozen=True)
class Chapter:
    """Describe a chapter. `predict` is called, and its expectations are shown, before `run` is."""

    name: str  # as --only takes it
    title: str
    idea: str  # three sentences
    predict: Callable[[Workbench], list[Expectation]]
    run: Callable[[Workbench], Outcome]
    read_next: str  # a file of the repository
    read_for: str  # what it shows


def quantity(value: float, unit: str) -> str:
    """Write a figure for a reader.

    Units: "s", "B" and "share" (1 = 100 %) choose their own scale, "×" is a factor, "" a bare
    number; any other unit is written behind the number.
    """
    if unit == "s":
        for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= scale:
                return f"{_digits(value / scale)} {name}"
        return f"{_digits(value * 1e6)} µs"
    if unit == "B":
        for scale, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= scale:
                return f"{_digits(value / scale)} {name}"
        return f"{value:,.0f} B"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "×":
        return f"{_digits(value)}×"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    """Write whole numbers without a fraction, others with three significant digits."""
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
