"""Read the lessons of the live page: data files in `web/lessons/`, in the order of their names.

A lesson asks for a prediction, sends requests, pauses at a moment of the record, and shows what
happened. CONTRIBUTING.md says how to write one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

FOLDER = Path(__file__).parent / "web" / "lessons"

Words = Annotated[str, msgspec.Meta(min_length=1, max_length=600)]
Amount = Annotated[str, msgspec.Meta(pattern=r"^[1-9]\d{0,2} % of (pool|context)$")] | int
"""Tokens: a number of them, or a share of the pool or of the longest context."""

Moment = Literal[
    "preemption",
    "refusal",
    "fork",
    "hit",
    "eviction",
    "copy",
    "chunk",
    "wait",
    "admission",
    "resumption",
    "draw",
    "end",
    "step",
]
"""The names in `web/room/moments.js`."""


class Prediction(msgspec.Struct, forbid_unknown_fields=True):
    """Ask what will happen. `answer` is the right choice, counted from 1."""

    question: Words
    choices: Annotated[list[Words], msgspec.Meta(min_length=2, max_length=5)]
    answer: Annotated[int, msgspec.Meta(ge=1)]

    def __post_init__(self) -> None:
        if self.answer > len(self.choices):
            raise ValueError(f"answer {self.answer} is none of {len(self.choices)} choices")


class Wave(msgspec.Struct, forbid_unknown_fields=True):
    """Send `count` requests at once; a later wave when the one before has begun to answer.

    `prompt_tokens` puts a text of about that length before the prompt; `same_beginning` says
    whether it is the same for all.
    """

    prompt: Words
    answer_tokens: Amount
    count: Annotated[int, msgspec.Meta(ge=1, le=48)] = 1
    prompt_tokens: Amount = 0
    same_beginning: bool = False
    n: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.8
    trace: Literal["steps", "full"] = "steps"  # full: its draws are recorded, which takes time


class Pause(msgspec.Struct, forbid_unknown_fields=True):
    """Name the moment to stop at: the `skip`-th after the first whose event has these fields.

    `show` says what is shown: the moment of the event, or the end of its step.
    """

    at: Moment
    where: dict[str, str | int | bool] = {}
    skip: Annotated[int, msgspec.Meta(ge=0)] = 0
    show: Literal["event", "step"] = "event"


class Figure(msgspec.Struct, forbid_unknown_fields=True):
    """Name a number of the record at the pause; a field ending in `_us` is shown as a time."""

    of: Annotated[
        str,
        msgspec.Meta(pattern=r"^(event|plan|time|pool|queue|engine|request)\.[a-z_]+$"),
    ]
    label: Words


class Fits(msgspec.Struct, forbid_unknown_fields=True):
    """Bound the servers on which the lesson shows its moment; 0: any."""

    blocks: int = 0
    seats: int = 0
    budget: int = 0


class Lesson(msgspec.Struct, forbid_unknown_fields=True):
    """Hold one lesson, as its file states it."""

    title: Words
    sentence: Words
    prediction: Prediction
    button: Words
    waves: Annotated[list[Wave], msgspec.Meta(min_length=1, max_length=4)]
    pause: Pause
    figures: Annotated[list[Figure], msgspec.Meta(min_length=2, max_length=2)]
    why: Words
    next: Words
    fits: Fits = msgspec.field(default_factory=Fits)
    terms: list[str] = []  # of the glossary


def read_lessons(folder: Path = FOLDER) -> list[Lesson]:
    """Read all lessons. Raises ValueError that names the file and what is wrong in it."""
    lessons = []
    for path in sorted(folder.glob("*.toml")):
        try:
            lessons.append(msgspec.toml.decode(path.read_bytes(), type=Lesson))
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(f"the lesson {path.name} can't be read: {error}") from None
    return lessons
