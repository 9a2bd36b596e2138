"""Word each event: one file for each family of events. `annotate.py` uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.trace.context import Context
from engine.trace.events import Event

Sentence = Callable[[Any, Context], str]

SENTENCES: dict[type[Event], Sentence] = {}
"""A kind of event → the function that words one that the context has seen."""


def words(kind: type[Event]) -> Callable[[Sentence], Sentence]:
    """Make a function the one that words events of a kind."""

    def keep(sentence: Sentence) -> Sentence:
        SENTENCES[kind] = sentence
        return sentence

    return keep
