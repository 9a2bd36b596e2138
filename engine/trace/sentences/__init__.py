"""Word each event: one file for each family of events. `annotate.py` collects them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.trace.context import Context
from engine.trace.events import Event

Sentences = dict[type[Event], Callable[[Any, Context], str]]
"""A kind of event → the function that words one that the context has seen."""
