"""Turn one event into one line of plain English: what, how much, and why.

    context = Context()
    for event in read_jsonl("trace.jsonl"):
        print(annotate(event, context))

The numbers are the recorded ones. The context (see `context.py`) adds the short names of requests,
what a step planned, and the state of the pool, so that a line can say which freed blocks other
requests still read. The sentences are in `sentences/`.
"""

from __future__ import annotations

from engine.trace.context import Context
from engine.trace.events import Event
from engine.trace.sentences import SENTENCES, blocks, engine, kernels, requests, steps, tokens
from engine.trace.wording import one_line

FAMILIES = (requests, steps, blocks, kernels, tokens, engine)
"""Importing a family fills `SENTENCES`."""


def annotate(event: Event, context: Context) -> str:
    """Return the line for this event, without the name of its request.

    Every event must be passed to this function (or to `Context.see`), in order.
    """
    context.see(event)
    return describe(event, context)


def describe(event: Event, context: Context) -> str:
    """Return the line for an event that the context has already seen."""
    return one_line(SENTENCES[type(event)](event, context))
