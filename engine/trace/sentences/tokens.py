"""Word the events of tokens and text: what was drawn, sent, held back."""

from __future__ import annotations

import math

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import count, joined, quoted, token_text


def _token(token_id: int, context: Context) -> str:
    """Show a token as its quoted text if the record has it, otherwise as its id."""
    if token_id < 0:
        return "a token (withheld)"
    text = context.texts.get(token_id)
    return f"token {token_id}" if text is None else token_text(text)


@words(ev.SampleDrawn)
def _drawn(event: ev.SampleDrawn, context: Context) -> str:
    token = _token(event.token_id, context)
    if event.token_id in context.texts:
        token += f" (token {event.token_id})"
    where = f"draws {token} at position {event.position}, rank {event.rank:,}"
    if event.greedy:
        allowed = "allowed " if event.num_allowed else ""
        how = f"greedy: the most probable {allowed}one"
    else:
        limits = [
            f"temperature {event.temperature:g}",
            f"top-k {event.top_k}" if event.top_k > 0 else "",
            f"top-p {event.top_p:g}" if event.top_p < 1 else "",
            f"min-p {event.min_p:g}" if event.min_p else "",
        ]
        drawn = f"u = {event.uniform:.4f} among {event.num_kept:,} kept"
        how = f"{drawn} ({joined(limits)})"
    others = [c for c in event.candidates if c.token_id != event.token_id][:2]
    instead = joined(
        f"{_token(c.token_id, context)} (p {_chance(c, event.greedy)})" for c in others
    )
    return joined(
        [
            where,
            f"log-probability {event.logprob:.2f}",
            how,
            _grammar(event, context) or (f"instead of {instead}" if instead else ""),
        ]
    )


def _grammar(event: ev.SampleDrawn, context: Context) -> str:
    """Say what the grammar allowed, which share it took, what the model would have written."""
    if not event.num_allowed:
        return ""
    allowed = count(event.num_allowed, "token")
    told = f"the grammar allows {allowed} (−{event.removed:.0%})"
    if event.instead_of < 0:
        return told
    free, chance = _token(event.instead_of, context), event.instead_of_probability
    return f"{told}; else {free} (p {chance:.2f})"


def _chance(candidate: ev.Candidate, greedy: bool) -> str:
    """Return a candidate's probability: the model's own, if the parameters excluded it."""
    if candidate.probability:
        return f"{candidate.probability:.2f}"
    return f"{math.exp(candidate.logprob):.2f}{'' if greedy else ', cut'}"


@words(ev.TextTokens)
def _text_tokens(event: ev.TextTokens, context: Context) -> str:
    shown = [f"{token} {token_text(text)}" for token, text in list(event.texts.items())[:6]]
    more = len(event.texts) - len(shown)
    return f"tokens read: {joined(shown)}{f' and {more:,} more' if more > 0 else ''}"


@words(ev.TextEmitted)
def _emitted(event: ev.TextEmitted, context: Context) -> str:
    return (
        f"sends {quoted(event.text) if event.text else 'text'} ({count(event.num_tokens, 'token')})"
    )


@words(ev.TextHeldBack)
def _held_back(event: ev.TextHeldBack, context: Context) -> str:
    return joined(
        [f"holds back {count(event.num_chars, 'character')}", context.plain(event.why)], ": "
    )


@words(ev.StopMatched)
def _stop_matched(event: ev.StopMatched, context: Context) -> str:
    stop = quoted(event.stop) if event.stop else "(withheld)"
    return f"the stop string {stop} appeared after {count(event.num_output_tokens, 'token')}"


@words(ev.ToolCalled)
def _tool_called(event: ev.ToolCalled, context: Context) -> str:
    tool = quoted(event.tool) if event.tool else "(withheld)"
    forced = ", as tool_choice wants" if event.forced else ""
    return f"calls the tool {tool} with {count(event.num_chars, 'character')} of arguments{forced}"


@words(ev.ToolUnreadable)
def _tool_unreadable(event: ev.ToolUnreadable, context: Context) -> str:
    what = "a call ends too early"
    if event.num_chars:
        what = f"{count(event.num_chars, 'character')} that begin like a call are content"
    return joined([what, context.plain(event.why)], ": ")
