"""Tell why a request was slow: one cause for each nanosecond of its time."""

from engine.trace.why.breakdown import why_slow
from engine.trace.why.words import why_in_words

__all__ = ["why_in_words", "why_slow"]
