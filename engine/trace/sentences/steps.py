"""Word the events of a step: what it plans, what it computed, how long its parts took."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import blocks, count, joined, milliseconds, span


def rows_in_words(rows: list[ev.StepRow], context: Context, most: int = 3) -> str:
    """Describe what a step computes: prompts and chunks by request, decoding ones together."""
    long = [row for row in rows if row.num_tokens > 1]
    decoding = [row for row in rows if row.num_tokens == 1]
    names = list(dict.fromkeys(row.request_id for row in decoding))
    proposals = len(decoding) - len(names)  # rows behind a sequence's first
    parts = [
        f"{context.name(row.request_id)} tokens {span(row.start, row.num_tokens)}"
        f"{'' if row.samples else ' (more to come)'}"
        for row in long[:most]
    ]
    if len(long) > most:
        rest = sum(row.num_tokens for row in long[most:])
        others = count(len(long) - most, "more request")
        parts.append(f"{others} {count(rest, 'token')}")
    checks = f" and {'checks' if len(names) == 1 else 'check'} {count(proposals, 'proposed token')}"
    if len(names) == 1:
        parts.append(f"{context.name(names[0])} decodes 1{checks if proposals else ''}")
    elif names:
        parts.append(f"{len(names)} requests decode 1 each{checks if proposals else ''}")
    return joined(parts) or "nothing to compute"


def time_split(event: ev.StepFinished, steps: int = 1) -> str:
    """Split a step's time into parts that sum up to the whole. `steps` > 1: of an average step."""
    execute = event.prepare_us + event.forward_us
    told = event.schedule_us + execute + event.draft_us + event.sample_us + event.record_us
    other = max(0.0, event.total_us - told)
    parts = [("schedule", event.schedule_us), ("execute", execute), ("sample", event.sample_us)]
    if event.draft_us:
        parts.insert(1, ("draft", event.draft_us))
    if event.record_us:
        parts.append(("record", event.record_us))
    rest = "overlap" if event.loop == "overlapped" else "other"  # a step waits for the previous one
    named = " + ".join(f"{name} {milliseconds(us / steps)}" for name, us in (*parts, (rest, other)))
    if event.joined_us:
        named += f" (of execute, {milliseconds(event.joined_us / steps)} joining the ranks)"
    return f"{milliseconds(event.total_us / steps)} ms = {named}"


@words(ev.StepPlanned)
def _step_planned(event: ev.StepPlanned, context: Context) -> str:
    queue = f"{event.num_running} running, {event.num_waiting} waiting"
    kept = f"{event.blocks_cached_free:,} cached and free"
    pool = f"{event.blocks_used:,} used, {kept}, {event.blocks_free:,} empty"
    work = rows_in_words(event.rows, context, most=1)
    return (
        f"plans {event.budget_used:,} of {event.budget:,} tokens: {work}; {queue}; blocks: {pool}"
    )


@words(ev.StepFinished)
def _step_finished(event: ev.StepFinished, context: Context) -> str:
    rows = context.finish_step(event.step)
    work = f": {rows_in_words(rows, context, most=2)}" if rows else ""
    tokens = f"computed {count(event.num_tokens, 'token')}, drew {event.num_sampled:,}"
    return f"{tokens}{work}; {time_split(event)}"


@words(ev.SpecVerified)
def _spec_verified(event: ev.SpecVerified, context: Context) -> str:
    proposals = count(event.num_proposed, "proposed token")
    source = f", copied from position {event.source}" if event.source >= 0 else ""
    back = f"; gives back {blocks(event.blocks)}" if event.blocks else ""
    return (
        f"{event.num_accepted} of {proposals} at the tokens from {event.position} on{source}:"
        f" {event.why}{back}"
    )
