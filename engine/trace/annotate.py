"""One event → one line of plain English: what, how much, and why, with the numbers that were
recorded.

    context = Context()
    for event in read_jsonl("trace.jsonl"):
        print(annotate(event, context))

The context (see `context.py`) remembers what makes a line better: the short names of requests, what
a step planned, and the state of the pool, so that a line can say which freed blocks others still
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from engine.trace import events as ev
from engine.trace.context import Context
from engine.trace.events import Event
from engine.trace.wording import (
    amount,
    blocks,
    count,
    duration,
    joined,
    milliseconds,
    one_line,
    quoted,
    size,
    span,
    token_text,
)


def annotate(event: Event, context: Context) -> str:
    """The line for this event, without the name of its request. Every event must pass here (or
    `Context.see`) in order.
    """
    context.see(event)
    return describe(event, context)


def describe(event: Event, context: Context) -> str:
    """The line for an event that the context has seen."""
    return one_line(_SENTENCES[type(event)](event, context))


# ----------------------------------------------------------------------------------------- requests


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


def _tokenized(event: ev.RequestTokenized, context: Context) -> str:
    cut = f"; {count(event.truncated, 'token')} cut from the left" if event.truncated else ""
    tokens = count(event.num_tokens, "token")
    return f"its text is {tokens}, found in {duration(event.duration_us)}{cut}"


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


def _refused(event: ev.RequestRefused, context: Context) -> str:
    return f"refused: {context.plain(event.why)}"


def _from_cache(cached: int, total: int) -> str:
    if not cached:
        return f"all {count(total, 'token')} to compute"
    return f"{cached:,} of {total:,} tokens are cached, {total - cached:,} to compute"


def _because(event: Any, context: Context) -> str:
    return context.plain(event.why) if event.why else ""


def _admitted(event: ev.RequestAdmitted, context: Context) -> str:
    found = _from_cache(event.num_cached_tokens, event.num_tokens)
    why = f": {_because(event, context)}" if event.why else ""
    return f"starts after {duration(event.waited_us)}{why}; {found}"


def _forked(event: ev.RequestForked, context: Context) -> str:
    shared = f"with its {count(event.num_computed_tokens, 'computed token')}"
    return joined(
        [f"forks from {context.name(event.parent)} {shared}", _because(event, context)], ": "
    )


def _preempted(event: ev.RequestPreempted, context: Context) -> str:
    back = {"recompute": "to be computed again", "swap": "copied to the host"}
    itself = event.for_request == event.request_id
    whom = "by itself, the lowest in rank" if itself else f"for {context.name(event.for_request)}"
    costs = f"recompute {event.recompute_ms:.2f} ms, swap {event.swap_ms:.2f} ms"
    return joined(
        [
            f"preempted {whom}",
            f": gives back {count(event.num_blocks, 'block')}",
            f", {count(event.num_computed_tokens, 'token')} {back.get(event.mode, event.mode)}",
            f" ({_because(event, context)})" if event.why else "",
            f"; {costs}" if event.recompute_ms and event.swap_ms and " ms" not in event.why else "",
        ],
        "",
    )


def _resumed(event: ev.RequestResumed, context: Context) -> str:
    found = _from_cache(event.num_cached_tokens, event.num_tokens)
    why = f": {_because(event, context)}" if event.why else ""
    return f"resumes after {duration(event.waited_us)}{why}; {found}"


def _finished(event: ev.RequestFinished, context: Context) -> str:
    rate = event.num_output_tokens / event.running_ms * 1e3 if event.running_ms else 0.0
    cached = f", {event.num_cached_tokens:,} from the cache" if event.num_cached_tokens else ""
    return joined(
        [
            f"finished ({event.reason}): {_because(event, context)}",
            f"{event.num_output_tokens:,} out, {event.num_prompt_tokens:,} in{cached}",
            f"{duration(event.running_ms * 1e3)}{f' ({rate:,.0f} tokens/s)' if rate else ''}",
            f"queued {duration(event.queued_ms * 1e3)}",
            f"preempted {event.num_preemptions} ×" if event.num_preemptions else "",
        ],
        "; ",
    )


def _aborted(event: ev.RequestAborted, context: Context) -> str:
    after = f"aborted after {count(event.num_output_tokens, 'token')}"
    return joined([after, _because(event, context)], ": ")


# -------------------------------------------------------------------------------------------- steps


def rows_in_words(rows: list[ev.StepRow], context: Context, most: int = 3) -> str:
    """What a step computes: prompts and chunks by request, decoding ones together."""
    long = [row for row in rows if row.num_tokens > 1]
    decoding = [row for row in rows if row.num_tokens == 1]
    parts = [
        f"{context.name(row.request_id)} tokens {span(row.start, row.num_tokens)}"
        f"{'' if row.samples else ' (more to come)'}"
        for row in long[:most]
    ]
    if len(long) > most:
        rest = sum(row.num_tokens for row in long[most:])
        parts.append(f"{len(long) - most} more requests {count(rest, 'token')}")
    if len(decoding) == 1:
        parts.append(f"{context.name(decoding[0].request_id)} decodes 1")
    elif decoding:
        parts.append(f"{len(decoding)} requests decode 1 each")
    return joined(parts) or "nothing to compute"


def time_split(event: ev.StepFinished, steps: int = 1) -> str:
    """Where a step's time went: the parts sum up to the whole. `steps` > 1: of an average one."""
    execute = event.prepare_us + event.forward_us
    other = max(0.0, event.total_us - event.schedule_us - execute - event.sample_us)
    parts = (("schedule", event.schedule_us), ("execute", execute), ("sample", event.sample_us))
    rest = "overlap" if event.loop == "overlapped" else "other"  # a step waits for the one before
    named = " + ".join(f"{name} {milliseconds(us / steps)}" for name, us in (*parts, (rest, other)))
    return f"{milliseconds(event.total_us / steps)} ms = {named}"


def _step_planned(event: ev.StepPlanned, context: Context) -> str:
    queue = f"{event.num_running} running, {event.num_waiting} waiting"
    kept = f"{event.blocks_cached_free:,} cached and free"
    pool = f"{event.blocks_used:,} used, {kept}, {event.blocks_free:,} empty"
    work = rows_in_words(event.rows, context, most=1)
    return (
        f"plans {event.budget_used:,} of {event.budget:,} tokens: {work}; {queue}; blocks: {pool}"
    )


def _step_finished(event: ev.StepFinished, context: Context) -> str:
    rows = context.finish_step(event.step)
    work = f": {rows_in_words(rows, context, most=2)}" if rows else ""
    tokens = f"computed {count(event.num_tokens, 'token')}, drew {event.num_sampled:,}"
    return f"{tokens}{work}; {time_split(event)}"


# ------------------------------------------------------------------------------------------- blocks


def _allocated(event: ev.BlockAllocated, context: Context) -> str:
    why = f": {_because(event, context)}" if event.why else ""
    if not why and context.block_size:
        first, tokens = event.index * context.block_size, len(event.blocks) * context.block_size
        why = f" for tokens {span(first, tokens)}"
    return f"takes {blocks(event.blocks)}{why}"


def _shared(event: ev.BlockShared, context: Context) -> str:
    shares = f"shares {blocks(event.blocks)} ({count(event.num_tokens, 'token')})"
    return joined([shares, _because(event, context)], ": ")


def _cached(event: ev.BlockCached, context: Context) -> str:
    is_full = "is full" if len(event.blocks) == 1 else "are full"
    return f"{blocks(event.blocks)} {is_full}: an equal prefix finds the content from now on"


def _copied(event: ev.BlockCopied, context: Context) -> str:
    copies = f"copies block {event.src_block} into block {event.dst_block} before writing"
    return joined([copies, _because(event, context)], ": ")


def _freed(event: ev.BlockFreed, context: Context) -> str:
    if not event.blocks:
        return f"gives back host {blocks(event.host_blocks)}: {_because(event, context)}"
    gives = f"gives back {blocks(event.blocks)} ({_because(event, context)})"
    if context.state is None:
        return gives
    references, hashes = context.state.references, context.state.hashes
    still_read = [block for block in event.blocks if references[block]]
    kept = sum(block in hashes for block in event.blocks if not references[block])
    now_free = len(event.blocks) - len(still_read)
    return joined(
        [
            f"{gives}: {now_free:,} free now",
            f"{kept:,} keep findable content" if kept else "",
            f"{blocks(still_read)} still read by others" if still_read else "",
        ]
    )


def _evicted(event: ev.BlockEvicted, context: Context) -> str:
    return evictions([event.block], event.why, context)


def evictions(lost: list[int], why: str, context: Context) -> str:
    """Blocks that were taken for something else together."""
    verb = "loses its" if len(lost) == 1 else "lose their"
    return joined([f"{blocks(lost)} {verb} cached content", context.plain(why)], ": ")


def _swapped_out(event: ev.BlockSwappedOut, context: Context) -> str:
    to = f"to host {blocks(event.host_blocks)}"
    return f"copies {blocks(event.blocks)} {to} ({size(event.num_bytes)})"


def _swapped_in(event: ev.BlockSwappedIn, context: Context) -> str:
    to = f"back into {blocks(event.blocks)}"
    return f"copies host {blocks(event.host_blocks)} {to} ({size(event.num_bytes)})"


# ------------------------------------------------------------------------------------------ kernels


def _kernel(event: ev.KernelLaunched, context: Context) -> str:
    return joined(
        [
            f"kernel {event.name} ({event.backend})",
            f"grid {' × '.join(map(str, event.grid))}" if event.grid else "",
            f"{event.num_warps} warps" if event.num_warps else "",
            f"{event.num_stages} stages" if event.num_stages else "",
            f"moves {size(event.num_bytes)}" if event.num_bytes else "",
            f"{amount(event.flops)} operations" if event.flops else "",
            duration(event.duration_us) if event.duration_us else "",
            f"{event.share_of_limit:.0%} of the machine's limit" if event.share_of_limit else "",
            _because(event, context),
        ]
    )


def _captured(event: ev.GraphCaptured, context: Context) -> str:
    kernels = count(event.num_kernels, "kernel")
    took = duration(event.duration_ms * 1e3)
    return (
        f"captured the decode step of {count(event.batch_size, 'row')}: {kernels} that later steps"
        f" replay in one go (took {took})"
    )


def _replayed(event: ev.GraphReplayed, context: Context) -> str:
    padding = event.batch_size - event.num_rows
    rows = count(event.num_rows, "row") + (f" and {padding} of padding" if padding else "")
    return f"replays the captured step of {event.batch_size}: {rows}"


# ------------------------------------------------------------------------------------------- tokens


def _token(token_id: int, context: Context) -> str:
    """A token as its text, in quotes, where the record has it; else as its id."""
    if token_id < 0:
        return "a token (withheld)"
    text = context.texts.get(token_id)
    return f"token {token_id}" if text is None else token_text(text)


def _drawn(event: ev.SampleDrawn, context: Context) -> str:
    token = _token(event.token_id, context)
    if event.token_id in context.texts:
        token += f" (token {event.token_id})"
    where = f"draws {token} at position {event.position}, rank {event.rank:,}"
    if event.greedy:
        how = "greedy: the most probable one"
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
            f"instead of {instead}" if instead else "",
        ]
    )


def _chance(candidate: ev.Candidate, greedy: bool) -> str:
    """Its probability: the model's own, where the parameters left it none."""
    if candidate.probability:
        return f"{candidate.probability:.2f}"
    return f"{math.exp(candidate.logprob):.2f}{'' if greedy else ', cut'}"


def _text_tokens(event: ev.TextTokens, context: Context) -> str:
    shown = [f"{token} {token_text(text)}" for token, text in list(event.texts.items())[:6]]
    more = len(event.texts) - len(shown)
    return f"tokens read: {joined(shown)}{f' and {more:,} more' if more > 0 else ''}"


def _emitted(event: ev.TextEmitted, context: Context) -> str:
    return (
        f"sends {quoted(event.text) if event.text else 'text'} ({count(event.num_tokens, 'token')})"
    )


def _held_back(event: ev.TextHeldBack, context: Context) -> str:
    return joined(
        [f"holds back {count(event.num_chars, 'character')}", _because(event, context)], ": "
    )


def _stop_matched(event: ev.StopMatched, context: Context) -> str:
    stop = quoted(event.stop) if event.stop else "(withheld)"
    return f"the stop string {stop} appeared after {count(event.num_output_tokens, 'token')}"


# --------------------------------------------------------------------------------------- the engine


def _started(event: ev.EngineStarted, context: Context) -> str:
    machine = joined(f"{key} {value}" for key, value in event.machine.items())
    versions = joined(f"{key} {value}" for key, value in event.versions.items())
    return joined([f"engine {event.version} starts", machine, versions], "; ")


def _model_loaded(event: ev.EngineModelLoaded, context: Context) -> str:
    kind = joined([event.architecture, event.implementation])
    weights = f"{amount(event.num_parameters)} parameters, {size(event.num_bytes)} of {event.dtype}"
    return f"loaded {event.model} ({kind}) in {duration(event.duration_s * 1e6)}: {weights}"


def _kv_sized(event: ev.EngineKvSized, context: Context) -> str:
    slots = event.num_blocks * event.block_size
    in_all = size(event.num_blocks * event.bytes_per_block)
    sizes = f"{size(event.bytes_per_block)} each, {in_all} in all"
    host = (
        f"{count(event.num_host_blocks, 'host block')} for swapping"
        if event.num_host_blocks
        else ""
    )
    room = f"{count(event.num_blocks, 'KV block')} of {event.block_size} tokens = {slots:,} tokens"
    return joined([room, sizes, host, _because(event, context)], "; ")


def _snapshot(event: ev.EngineSnapshot, context: Context) -> str:
    gone = f"the record begins here: the {event.num_gone:,} events before are gone"
    told = event.state
    if told is None:
        return f"{gone}, and with them the state of the blocks"
    used = len(told["references"]) - len(told["free_queue"])
    return (
        f"{gone}; they came to: {len(told['running']):,} running, {len(told['waiting']):,} "
        f"waiting, {used:,} of {count(len(told['references']), 'block')} used"
    )


def _warning(event: ev.EngineWarning, context: Context) -> str:
    return f"warning: {context.plain(event.message)}"


def _failed(event: ev.EngineFailed, context: Context) -> str:
    return f"FAILED: {context.plain(event.message)}"


_SENTENCES: dict[type[Event], Callable[[Any, Context], str]] = {
    ev.RequestReceived: _received,
    ev.RequestTokenized: _tokenized,
    ev.RequestQueued: _queued,
    ev.RequestWaiting: _waiting,
    ev.RequestRefused: _refused,
    ev.RequestAdmitted: _admitted,
    ev.RequestForked: _forked,
    ev.RequestPreempted: _preempted,
    ev.RequestResumed: _resumed,
    ev.RequestFinished: _finished,
    ev.RequestAborted: _aborted,
    ev.StepPlanned: _step_planned,
    ev.StepFinished: _step_finished,
    ev.BlockAllocated: _allocated,
    ev.BlockShared: _shared,
    ev.BlockCached: _cached,
    ev.BlockCopied: _copied,
    ev.BlockFreed: _freed,
    ev.BlockEvicted: _evicted,
    ev.BlockSwappedOut: _swapped_out,
    ev.BlockSwappedIn: _swapped_in,
    ev.KernelLaunched: _kernel,
    ev.GraphCaptured: _captured,
    ev.GraphReplayed: _replayed,
    ev.SampleDrawn: _drawn,
    ev.TextEmitted: _emitted,
    ev.TextHeldBack: _held_back,
    ev.StopMatched: _stop_matched,
    ev.TextTokens: _text_tokens,
    ev.EngineStarted: _started,
    ev.EngineModelLoaded: _model_loaded,
    ev.EngineKvSized: _kv_sized,
    ev.EngineSnapshot: _snapshot,
    ev.EngineWarning: _warning,
    ev.EngineFailed: _failed,
}
