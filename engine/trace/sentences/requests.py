"""Word the events of a request: received, queued, admitted, preempted, ended."""

from __future__ import annotations

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.sentences import words
from engine.trace.wording import count, duration, joined, one_line, quoted


@words(ev.RequestReceived)
def _received(event: ev.RequestReceived, context: Context) -> str:
    params = joined(f"{key}={value}" for key, value in event.params.items())
    return joined(
        [
            f"{event.route} {quoted(event.text) if event.text else '(no text)'}",
            one_line(f"with {params}", 60) if params else "",
            f"from {event.client}" if event.client else "",
            f"ignores unknown {joined(event.ignored)}" if event.ignored else "",
        ]
    )


@words(ev.RequestTokenized)
def _tokenized(event: ev.RequestTokenized, context: Context) -> str:
    cut = f"; {count(event.truncated, 'token')} cut from the left" if event.truncated else ""
    tokens = count(event.num_tokens, "token")
    return f"its text is {tokens}, found in {duration(event.duration_us)}{cut}"


_FORMS = {
    "json": "a JSON Schema",
    "json_object": "a JSON object",
    "regex": "a regular expression",
    "choice": "a list of choices",
    "grammar": "a grammar",
    "structural_tag": "a structural tag",
}


@words(ev.GrammarCompiled)
def _compiled(event: ev.GrammarCompiled, context: Context) -> str:
    how = "compiled before" if event.cached else f"compiled in {duration(event.duration_us)}"
    form = _FORMS.get(event.form, "a form")
    return f"its text must follow {form}: {count(event.num_bytes, 'byte')}, {how}"


@words(ev.RequestQueued)
def _queued(event: ev.RequestQueued, context: Context) -> str:
    asked = f" (asked for {event.clamped_from:,}: the context is full then)"
    return joined(
        [
            f"queued: {count(event.num_prompt_tokens, 'token')} in",
            f"at most {event.max_tokens:,} out{asked if event.clamped_from else ''}",
            f"{event.n} sequences" if event.n > 1 else "",
            f"priority {event.priority}" if event.priority else "",
            f"{event.queue_length:,} wait now" if event.queue_length > 1 else "nobody else waits",
        ]
    )


@words(ev.RequestWaiting)
def _waiting(event: ev.RequestWaiting, context: Context) -> str:
    unit = {"blocks": "block", "seats": "seat"}.get(event.waits_for)
    if unit is None:
        reason = context.plain(event.why) or f"for {event.waits_for}"
    else:
        reason = f"needs {count(event.need, unit)}, {event.available:,} free"
        if event.next_release:
            amount_back = event.next_release_amount
            reason += (
                f"; {amount_back:,} come{'s' if amount_back == 1 else ''} back when "
                f"{context.name(event.next_release)} ends "
                f"(at most {count(event.next_release_steps, 'step')})"
            )
    behind = f"; {event.behind:,} more behind it" if event.behind else ""
    return f"waits: {reason}{behind}"


@words(ev.RequestRefused)
def _refused(event: ev.RequestRefused, context: Context) -> str:
    return f"refused: {context.plain(event.why)}"


def _from_cache(cached: int, total: int) -> str:
    if not cached:
        return f"all {count(total, 'token')} to compute"
    return f"{cached:,} of {total:,} tokens are cached, {total - cached:,} to compute"


@words(ev.RequestAdmitted)
def _admitted(event: ev.RequestAdmitted, context: Context) -> str:
    found = _from_cache(event.num_cached_tokens, event.num_tokens)
    why = f": {context.plain(event.why)}" if event.why else ""
    return f"starts after {duration(event.waited_us)}{why}; {found}"


@words(ev.RequestForked)
def _forked(event: ev.RequestForked, context: Context) -> str:
    shared = f"with its {count(event.num_computed_tokens, 'computed token')}"
    return joined(
        [f"forks from {context.name(event.parent)} {shared}", context.plain(event.why)], ": "
    )


@words(ev.RequestPreempted)
def _preempted(event: ev.RequestPreempted, context: Context) -> str:
    back = {"recompute": "to be computed again", "swap": "copied to the host"}
    return joined(
        [
            "preempted",
            f": {context.plain(event.why)}" if event.why else "",
            f"; gives back {count(event.num_blocks, 'block')}",
            f", {count(event.num_computed_tokens, 'token')} {back.get(event.mode, event.mode)}",
            f" ({context.plain(event.mode_why)})" if event.mode_why else "",
        ],
        "",
    )


@words(ev.RequestResumed)
def _resumed(event: ev.RequestResumed, context: Context) -> str:
    found = _from_cache(event.num_cached_tokens, event.num_tokens)
    why = f": {context.plain(event.why)}" if event.why else ""
    return f"resumes after {duration(event.waited_us)}{why}; {found}"


@words(ev.RequestFinished)
def _finished(event: ev.RequestFinished, context: Context) -> str:
    rate = event.num_output_tokens / event.running_ms * 1e3 if event.running_ms else 0.0
    pace = f" ({count(round(rate), 'token')}/s)" if rate else ""
    cached = f", {event.num_cached_tokens:,} from the cache" if event.num_cached_tokens else ""
    return joined(
        [
            joined([f"finished ({event.reason})", context.plain(event.why)], ": "),
            f"{event.num_output_tokens:,} out, {event.num_prompt_tokens:,} in{cached}",
            f"{duration(event.running_ms * 1e3)}{pace}",
            f"queued {duration(event.queued_ms * 1e3)}",
            f"preempted {event.num_preemptions} ×" if event.num_preemptions else "",
        ],
        "; ",
    )


@words(ev.RequestAborted)
def _aborted(event: ev.RequestAborted, context: Context) -> str:
    after = f"aborted after {count(event.num_output_tokens, 'token')}"
    return joined([after, context.plain(event.why)], ": ")


@words(ev.RequestAnswered)
def _answered(event: ev.RequestAnswered, context: Context) -> str:
    return f"answered: its last byte went out {duration(event.sending_us)} after its last token"
