"""Define an exercise, and the error that says in a sentence what is wrong with a solution."""

from __future__ import annotations

from dataclasses import dataclass


class Wrong(Exception):
    """Report what a solution does, and what it should do, in one sentence."""


@dataclass(frozen=True)
class Exercise:
    """Describe one step of the course."""

    name: str  # of the file in exercises/, in course/holes/ and in course/checks/
    title: str
    points: int  # shared equally by the parts of its check
    hints: tuple[str, str]  # a first one, and one that says more
    needs: tuple[str, ...] = ()  # modules that its check imports; the others need no torch
