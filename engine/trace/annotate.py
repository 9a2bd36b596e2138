"""One event → one line of plain English: what, how much, and why, with the numbers that were
recorded.

    context = Context()
    for event in read_jsonl("trace.jsonl"):
        print(annotate(event, context))

The context (see `context.py`) remembers what makes a line better: the short names of requests, what
a step planned, and the state of the pool, so that a line can say which freed blocks others still
read. The sentences themselves are in `sentences/`.
"""

from __future__ import annotations

from engine.trace.context import Context
from engine.trace.events import Event
from engine.trace.sentences import Sentences, blocks, kernels, life, requests, steps, tokens
from engine.trace.wording import one_line

_FAMILIES = (requests, steps, blocks, kernels, tokens, life)
_SENTENCES: Sentences = {
    kind: sentence for family in _FAMILIES for kind, sentence in family.SENTENCES.items()
}


def annotate(event: Event, context: Context) -> str:
    """The line for this event, without the name of its request. Every event must pass here (or
    `Context.see`) in order.
    """
    context.see(event)
    return describe(event, context)


def describe(event: Event, context: Context) -> str:
    """The line for an event that the context has seen."""
    return one_line(_SENTENCES[type(event)](event, context))
