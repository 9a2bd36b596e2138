"""Answer the questions of the log guide from the records."""

# ruff: noqa: E501 - prose
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from docs.scripts.reader import Record, printed, trace_output
from engine.rounding import ceil_div
from engine.trace import events as ev
from engine.trace.events import Event
from engine.trace.sequences import request_of
from engine.trace.wording import count, duration, size, token_text

Records = dict[str, Record]
Answer = tuple[str, list[tuple[str, str]]]
"""The text, and (caption, excerpt) pairs."""


class Question(NamedTuple):
    """Hold a question and the function that answers it from the records."""

    title: str
    answer: Callable[[Records], Answer]


def _waiting(records: Records) -> Answer:
    record = records["crowd"]
    wait = record.first(ev.RequestWaiting, lambda e: e.waits_for == "blocks" and e.next_release)
    admitted = record.first(
        ev.RequestAdmitted | ev.RequestResumed,  # type: ignore[arg-type]
        lambda e: e.request_id == wait.request_id and e.seq > wait.seq,
    )
    kinds = ("request.queued", "request.waiting", "request.admitted", "request.resumed")
    lines = record.lines(
        lambda line: (
            line.request_id == wait.request_id
            and line.kind in kinds
            and line.ts_ns <= admitted.ts_ns
        )
    )
    text = (
        "`request.waiting` says what the head of the queue lacks (`blocks`, `seats`, the `budget` of"
        " the step, or that a request was preempted in this step), how much of it is free, and which"
        " running request will release some first. The queue is strict: requests behind the head wait"
        " for the head. The last line, `starts after …`, has the whole waiting time: here"
        f" {duration(admitted.waited_us)}."
    )
    name = record.line_of(wait).name
    return text, [(_command(record, f"annotate {record.name} --request {name}"), printed(lines))]


def _preempted(records: Records) -> Answer:
    excerpts = []
    for name in ("crowd", "crowd-recompute"):
        record = records[name]
        all_of_them = record.all(ev.RequestPreempted)
        others = [e for e in all_of_them if e.for_request != e.request_id]
        preempted = (others or all_of_them)[0]
        resumed = record.first(
            ev.RequestResumed,
            lambda e, p=preempted: e.request_id == p.request_id and e.seq > p.seq,
        )
        lines = [record.line_of(preempted), record.line_of(resumed)]
        mode = {"crowd": "auto", "crowd-recompute": "recompute"}[name]
        excerpts.append((f"With `--preemption-mode {mode}`:", printed(lines)))
    text = (
        "If a running request needs a block and none is free, the running request of the lowest rank"
        " is preempted: the one that arrived last. `request.preempted` names both, and the cost of"
        " getting the keys and values back: copied to the host and back (swap), or computed again"
        " (recompute). Both costs are measured on this machine: copying a block at the start,"
        " computing a token in the steps so far. `request.resumed` says how long the request waited."
    )
    return text, excerpts


def _blocks(records: Records) -> Answer:
    record = records["tour"]
    copied = record.first(ev.BlockCopied)
    parent = request_of(copied.request_id)
    about = [
        event
        for kind in (ev.RequestForked, ev.BlockShared, ev.BlockCopied)
        for event in record.all(kind)
        if event.request_id.startswith(parent) and event.step <= copied.step
    ]
    lines = [record.line_of(event) for event in sorted(about, key=lambda e: e.seq)]
    step = copied.step
    shown = trace_output(["replay", str(record.path), "--step", str(step)])
    text = (
        "Replay folds the events into the exact block tables after any step. Two sequences share a"
        " block when their tables name the same number. With `n` > 1 the prompt is computed once and"
        " every sibling's table starts as a copy of the parent's. The first sequence that writes into"
        " a block that others still read gets its own copy of it (`block.copied`)."
    )
    return text, [
        ("The events:", printed(lines)),
        (_command(record, f"replay {record.name} --step {step}"), shown),
    ]


def _usage(records: Records) -> Answer:
    record = records["crowd"]
    plans = record.all(ev.StepPlanned)
    plan = max(plans, key=lambda e: (e.blocks_cached_free > 0, e.blocks_used))
    whole = plan.blocks_used + plan.blocks_cached_free + plan.blocks_free
    summary = record.lines(lambda line: line.kind == "summary")[-5:]
    text = (
        "It counts the blocks that some block table names, divided by all blocks:"
        " `vllm:kv_cache_usage_perc` in `/metrics`, `used` in the log. A block that no request reads,"
        " but whose content can still be found, is *cached and free*: it is taken when a block is"
        " needed, so it doesn't count as used. The third kind is *empty*. The three add up to the"
        " pool: in this step"
        f" {plan.blocks_used} + {plan.blocks_cached_free} + {plan.blocks_free} = {whole}, which is"
        f" {plan.blocks_used / whole:.0%} used."
    )
    return text, [
        ("One step, with `--all`:", printed([record.line_of(plan)])),
        ("The summary, which the console prints every ten seconds:", printed(summary)),
    ]


def _hit_rate(records: Records) -> Answer:
    record = records["tour"]
    lines = []
    for asked in ("first", "again", "other"):
        wanted = record.id_of(asked)
        admitted = record.first(ev.RequestAdmitted, lambda e, w=wanted: e.request_id == w)
        received = record.first(ev.RequestReceived, lambda e, w=wanted: e.request_id == w)
        lines += [record.line_of(received), record.line_of(admitted)]
    again = record.id_of("again")
    admitted = record.first(ev.RequestAdmitted, lambda e: e.request_id == again)
    cached = admitted.num_cached_tokens
    block_size = record.first(ev.EngineKvSized).block_size
    text = (
        f"Only whole blocks are cached, so a hit needs at least {block_size} equal tokens from the"
        " first one on, and a difference in the first block excludes everything after it. A hit stops"
        " before the last token of the prompt, because that one must be computed to draw the next."
        " And content is lost when its block is taken for another use (`block.evicted`). Below, the second request repeats the first one and finds"
        f" {count(cached, 'token')}; the third one differs within the first block and finds none."
    )
    return text, [("Three requests, one after another:", printed(lines))]


def reserving(record: Record) -> tuple[ev.StepPlanned, int, int, int, int]:
    """Compare with reserving, at the fullest step of a record.

    Returns (the step, blocks used, tokens in them, blocks that reserving would take, running
    sequences). Reserving means: every running sequence gets blocks for the longest sequence when it
    starts.
    """
    sized = record.first(ev.EngineKvSized)
    plan = max(record.all(ev.StepPlanned), key=lambda e: (len(e.rows), e.blocks_used))
    state = record.replay.state_at(plan.step)
    tokens = sum(state.sequences[name].num_computed_tokens for _rank, name in state.running)
    running = len(state.running)
    reserved = running * ceil_div(sized.max_model_len, sized.block_size)
    used = sum(r > 0 for r in state.references)
    return plan, used, tokens, reserved, running


def _reserving(records: Records) -> Answer:
    record = records["tour"]
    sized = record.first(ev.EngineKvSized)
    plan, used, tokens, reserved, running = reserving(record)
    slots = used * sized.block_size
    text = (
        "Replay knows every table, so the comparison is a count. The step below ran"
        f" {count(running, 'sequence')} at once. They hold {count(used, 'block')} ="
        f" {slots:,} token slots, of which {tokens:,} are filled ({tokens / slots:.0%})."
        f" Reserving room for the longest sequence ({sized.max_model_len:,} tokens) for each of"
        f" them would have taken {count(reserved, 'block')},"
        f" {size(reserved * sized.bytes_per_block)} in place of"
        f" {size(used * sized.bytes_per_block)}: {reserved / used:.0f} times as much."
    )
    return text, [("The step, with `--all`:", printed([record.line_of(plan)]))]


def _step(records: Records) -> Answer:

    def mixed(plan: ev.StepPlanned) -> bool:
        sizes = [row.num_tokens for row in plan.rows]
        return len(sizes) > 1 and max(sizes) > 1 and min(sizes) == 1

    shown = (r for r in records.values() if any(map(mixed, r.all(ev.StepPlanned))))
    record = next(shown, records["crowd"])
    plan = record.first(ev.StepPlanned, mixed)
    finished = record.first(ev.StepFinished, lambda e: e.step == plan.step)
    text = (
        "A step computes any mixture: prompts, pieces of prompts, and one token each for those that"
        " decode. `step.planned` says which tokens of which request it computes, within which"
        " budget; `step.finished` says how long each part took. *schedule* is planning, *execute* is"
        " making the tensors and running the model, *sample* is from logits to tokens; *other* is"
        " the rest up to the whole."
    )
    lines = printed([record.line_of(plan), record.line_of(finished)])
    return text, [(f"Step {plan.step}, with `--all`:", lines)]


def _kernels(records: Records) -> Answer:
    record = records["tour"]
    launched = record.all(ev.KernelLaunched)
    if not launched:
        raise LookupError(f"{record.name} has no kernel.launched; record it again.")
    first_of: dict[str, Event] = {}
    for event in launched:
        first_of.setdefault(event.name, event)
    text = (
        "`kernel.launched` is written for steps that serve a request with `trace: full`. It has the"
        " grid (the pieces that the work was cut into), the bytes and operations as counted from"
        " the shapes, and, where there was a choice, the reason for the grid. On the console a step's"
        " launches are one line; `--all` prints each. These are the first launches of each kind in"
        " one run on a CPU."
    )
    command = _command(record, f"annotate {record.name} --all")
    return text, [(command, printed([record.line_of(event) for event in first_of.values()]))]


def _limit(records: Records) -> Answer:
    record = records["profile"]
    finished = record.all(ev.StepFinished)[-1]
    timed = [e for e in record.all(ev.KernelLaunched) if e.step == finished.step and e.duration_us]
    if not timed:
        raise LookupError("profile.jsonl has no timed kernel: record it again")
    us = sum(e.duration_us for e in timed)
    least = sum(e.duration_us * e.share_of_limit for e in timed)
    moved, work = sum(e.num_bytes for e in timed), sum(e.flops for e in timed)
    kinds = {e.name: e for e in sorted(timed, key=lambda e: e.duration_us)}  # the longest of each
    text = (
        "A launch can't be faster than its bytes divided by the machine's memory bandwidth, nor than"
        " its operations divided by the matrix rate; the limit is the slower of the two. With"
        " `--trace profile` the server measures both"
        " ([machine_limits.py](../engine/kernels/machine_limits.py)) and times each launch alone:"
        " `kernel.launched` then has `duration_us` and `share_of_limit`. Without it there are the"
        " bytes and operations, so the sum can be made by hand. A decode step of the record below"
        f" launched {count(len(timed), 'kernel')} that move {size(moved)} and do {work:,} operations"
        f" in {duration(us)} together. At the limit they would take {duration(least)}:"
        f" {least / us:.0%}. Small launches spend most of their time on starting and returning."
    )
    if any(e.share_of_limit > 1 for e in timed):
        text += (
            " More than 100% means that a kernel's data was still in the processor's caches, which"
            " are faster than memory: this model is small enough for that."
        )
    lines = [record.line_of(event) for event in kinds.values()]
    return text, [
        (f"Step {finished.step}, with `--all`, the longest of each kind:", printed(lines))
    ]


def _texts(record: Record) -> dict[int, str]:
    """Return the text of each token id that a record names."""
    texts: dict[int, str] = {}
    for event in record.all(ev.TextTokens):
        texts |= event.texts
    return texts


def _token(records: Records) -> Answer:
    record = records["tour"]
    warm = record.first(ev.SampleDrawn, lambda e: not e.greedy)
    greedy = record.first(ev.SampleDrawn, lambda e: e.greedy)
    texts = _texts(record)
    rows = [
        f"{token_text(texts[c.token_id]):>12}   {c.token_id:>9}   {c.logprob:>15.3f}"
        f"   {c.probability:>21.3f}"
        f"{'   ← drawn' if c.token_id == warm.token_id else ''}"
        for c in warm.candidates[:10]
    ]
    heading = (
        f"{'token':>12}   {'token id':>9}   {'log-probability':>15}   {'chance after the cuts':>21}"
    )
    text = (
        "`sample.drawn` (level `full`) has the drawn token, its rank and log-probability, the random"
        " number, how many tokens top-k, top-p and min-p left, and the most probable candidates:"
        " each with its log-probability before any parameter and its chance after all of them"
        " (0: it was cut). `text.tokens` before it has the texts of the ids. The random number depends"
        " only on the seed and the position, so the same request draws the same tokens beside any"
        " other requests."
    )
    return text, [
        ("A greedy draw, and one at temperature 1:",
         printed([record.line_of(greedy), record.line_of(warm)])),
        ("The candidates of the second one:", "\n".join([heading, *rows])),
    ]  # fmt: skip


def _form(records: Records) -> Answer:
    record = records["form"]
    compiled = record.first(ev.GrammarCompiled)
    draws = record.all(ev.SampleDrawn)
    changed = [event for event in draws if event.instead_of >= 0]
    kept = [event for event in draws if event.instead_of < 0]
    texts = _texts(record)
    rows = [
        f"{token_text(texts[e.token_id]):>14}   {e.num_allowed:>7,}   {e.removed:>7.1%}"
        f"   {token_text(texts[e.instead_of]) if e.instead_of >= 0 else 'the same'}"
        for e in draws
    ]
    heading = f"{'token':>14}   {'allowed':>7}   {'removed':>7}   without the grammar"
    text = (
        "A request with `response_format` or `structured_outputs` gets a grammar, which says before"
        " each draw which tokens may follow. `sample.drawn` (level `full`) has how many these were"
        " (`num_allowed`), how much of the model's own probability lay on the others (`removed`),"
        " and the token that the same draw gives on the model's own logits, where it is another one"
        f" (`instead_of`). In this answer the grammar changed {len(changed)} of {len(draws)} tokens."
    )
    lines = [compiled, changed[0], *kept[:1]]
    return text, [
        ("The grammar, a token that it changed, and one that it didn't:",
         printed([record.line_of(event) for event in lines])),
        ("Token by token:", "\n".join([heading, *rows])),
    ]  # fmt: skip


def _stopped(records: Records) -> Answer:
    record = records["tour"]
    lines = []
    for matches in (
        lambda e: e.reason == "length",
        lambda e: e.reason == "stop" and not e.stop_reason,
        lambda e: e.reason == "stop" and e.stop_reason,
    ):
        found = [e for e in record.all(ev.RequestFinished) if matches(e)]
        lines += [record.line_of(e) for e in found[:1]]
    lines += [record.line_of(e) for e in record.all(ev.RequestAborted)[:1]]
    text = (
        "`request.finished` has the `reason` that the client sees (`length`: all the tokens asked for"
        " were drawn, or the context was full; `stop`: the model's own end, a stop token or a stop"
        " string) and says in words which of them it was. `request.aborted` is an end from"
        " outside: the client left, or the server was told to stop."
    )
    return text, [("Several ends of one run:", printed(lines))]


def _command(record: Record, arguments: str) -> str:
    return f"`python -m engine.trace {arguments}` has it:"


QUESTIONS = [
    Question("Why is my request waiting? For what, and how long?", _waiting),
    Question("Why was this one preempted, and what would the other way have cost?", _preempted),
    Question("Which blocks does it own, which does it share, and with whom?", _blocks),
    Question("What does “KV cache usage” count?", _usage),
    Question("Why was the prefix hit rate 0 here?", _hit_rate),
    Question("How much memory would reserving have taken?", _reserving),
    Question("What ran in this step, and how long did each part take?", _step),
    Question("Which kernel was launched, with which grid, and why that grid?", _kernels),
    Question("How close to the machine's limit was it?", _limit),
    Question("What else could this token have been?", _token),
    Question("What did the schema forbid, and what would the model have written?", _form),
    Question("Why did it stop?", _stopped),
]
