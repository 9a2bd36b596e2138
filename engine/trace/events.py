"""Declare every kind of event that the engine can record.

An event is one small typed struct. It states what *happened* (never what should have), with sizes
and times that were read and, for a decision, `why` in plain words. So an event's docstring is a
statement, too: it says what the event means. The comment beside a field gives its unit.
`docs/LOG_GUIDE.md` is generated from these declarations.

Folding the `request.*`, `block.*` and `step.*` events alone rebuilds the block pool, the queues and
every block table at every step: see `replay.py`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Union

import msgspec


class Event(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="kind", gc=False):
    """Carry what every event has.

    `seq` counts the events of one process (`src` names it: "core" or "server") from 1, without gaps
    unless events were dropped, which `engine.warning` then says. `ts_ns` is nanoseconds of
    CLOCK_MONOTONIC, comparable between the processes of one machine. `step` is the step during
    which it happened, 0 before the first one.
    """

    full_only: ClassVar[bool] = False  # recorded only at level `full`

    seq: int = 0
    ts_ns: int = 0
    step: int = 0
    src: str = "core"
    request_id: str = ""


# ----------------------------------------------------------------------------------------- requests


class RequestReceived(Event, tag="request.received"):
    """The server accepted an HTTP request (or `LLM.generate` a prompt)."""

    route: str = ""  # "/v1/completions", "/v1/chat/completions", "LLM.generate", …
    params: dict[str, Any] = {}  # the sampling parameters that differ from their defaults
    client: str = ""  # address of the caller
    trace_context: dict[str, str] = {}  # its header traceparent; with spans, tracestate, too
    ignored: list[str] = []  # unknown fields of the body; they have no effect
    text: str = ""  # the prompt as text; empty with --trace-text off


class RequestTokenized(Event, tag="request.tokenized"):
    """Text became token ids."""

    num_tokens: int = 0
    duration_us: float = 0.0
    truncated: int = 0  # tokens cut from the left by truncate_prompt_tokens
    token_ids: list[int] = []  # the tokens themselves (level `full`); empty with --trace-text off


class GrammarCompiled(Event, tag="grammar.compiled"):
    """The form that the request's text must have is compiled to a grammar; the text follows it."""

    form: str = ""  # json, json_object, regex, choice, grammar, structural_tag or tools
    num_bytes: int = 0  # of the grammar's source
    duration_us: float = 0.0  # 0 if it was known
    cached: bool = False  # an earlier request had the same


class RequestQueued(Event, tag="request.queued"):
    """The core queued the request. Its rank orders it among all others, lowest first."""

    num_prompt_tokens: int = 0
    max_tokens: int = 0
    clamped_from: int = 0  # the max_tokens asked for, if the context length reduced it
    priority: int = 0
    rank: list[int] = []  # [priority (0 under fcfs), arrival number]
    n: int = 1  # sequences wanted; the request takes this many seats
    queue_length: int = 0  # waiting requests, this one included
    # of the prompt's full blocks, chained, 16 hex digits each; "" with the prefix cache off
    hashes: str = ""
    salt: str = ""  # hash of the request's cache_salt, 16 hex digits; "" if it has none


class RequestWaiting(Event, tag="request.waiting"):
    """The head of the queue couldn't be admitted in this step.

    Emitted when the reason changes, or which kind of numbers it has.
    """

    # "budget" (tokens of a step), "seats" (max_num_seqs), "blocks", "preemption" (of others)
    waits_for: str = ""
    need: int = 0  # in units of what it waits for
    available: int = 0
    next_release: str = ""  # for blocks and seats: the running request that must end first
    next_release_steps: int = 0  # after at most this many steps
    next_release_amount: int = 0  # what it will give back
    behind: int = 0  # requests that wait behind this one
    why: str = ""


class RequestRefused(Event, tag="request.refused"):
    """The request can never be served; nothing was allocated for it."""

    why: str = ""


class RequestAdmitted(Event, tag="request.admitted"):
    """The request left the queue and runs from this step on."""

    waited_us: float = 0.0  # since it was queued
    num_tokens: int = 0  # tokens that it has
    num_cached_tokens: int = 0  # of them found in the prefix cache
    why: str = ""


class RequestForked(Event, tag="request.forked"):
    """The prompt of a request with `n > 1` is computed: a sibling starts and shares all of its
    blocks."""

    parent: str = ""
    index: int = 0  # 1 … n − 1
    num_computed_tokens: int = 0
    why: str = ""


class RequestPreempted(Event, tag="request.preempted"):
    """A running request gave its blocks back so that a higher-ranked one could continue.

    It keeps its output.
    """

    mode: str = ""  # "recompute" or "swap"
    num_blocks: int = 0  # given back
    num_computed_tokens: int = 0  # whose K/V left the device
    for_request: str = ""  # the request that needed the blocks
    need: int = 0  # blocks that it needed
    available: int = 0  # blocks that were free
    recompute_ms: float = 0.0  # estimated cost of computing its K/V again; 0 = not yet measured
    swap_ms: float = 0.0  # estimated cost of copying its blocks out and in
    mode_why: str = ""  # what decided between the two modes
    why: str = ""  # who needed blocks for which token, why this one, and what would help


class RequestResumed(Event, tag="request.resumed"):
    """A preempted request runs again."""

    mode: str = ""
    waited_us: float = 0.0  # since it was preempted
    num_tokens: int = 0
    num_cached_tokens: int = 0  # not to compute again: swapped in, or in the prefix cache
    why: str = ""


class RequestFinished(Event, tag="request.finished"):
    """The request ended by itself. Its blocks are free from now on: a `block.freed` stands beside
    it.
    """

    reason: str = ""  # "stop", "length", or "error": no token could be drawn
    stop_reason: str = ""  # the stop string or token id that matched; otherwise empty
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queued_ms: float = 0.0
    running_ms: float = 0.0  # since first admitted
    hashes: str = ""  # as in `request.queued`, of the full blocks after those
    why: str = ""


class RequestAborted(Event, tag="request.aborted"):
    """The request was ended from outside: the client disconnected, or the server is stopping."""

    num_output_tokens: int = 0
    why: str = ""


class RequestAnswered(Event, tag="request.answered"):
    """The server gave the last byte of the answer to the operating system, for the client."""

    sending_us: float = 0.0  # since the text of its last token was known


# -------------------------------------------------------------------------------------------- steps


class StepRow(msgspec.Struct, array_like=True, gc=False):
    """One sequence's share of a step: it computes positions start … start + num_tokens − 1."""

    request_id: str  # of the sequence: siblings of n > 1 are "id.1", "id.2", …
    start: int  # tokens already in the cache
    num_tokens: int  # tokens computed in this step
    samples: int  # drawn from the last position: 0 (the prompt continues in a later step), 1, or n


class PlannedStep(msgspec.Struct):
    """The rows of a step in flight."""

    step: int
    rows: list[StepRow]


class StepPlanned(Event, tag="step.planned"):
    """The scheduler decided what this step computes."""

    rows: list[StepRow] = []
    budget: int = 0  # max_num_batched_tokens
    budget_used: int = 0
    num_running: int = 0
    num_waiting: int = 0
    blocks_used: int = 0  # referenced by some request
    blocks_cached_free: int = 0  # unreferenced, but findable in the prefix cache
    blocks_free: int = 0  # neither
    host_blocks_used: int = 0
    schedule_us: float = 0.0


class StepFinished(Event, tag="step.finished"):
    """The worker returned the tokens of a step, and they were booked."""

    num_tokens: int = 0  # computed
    num_decode_tokens: int = 0  # of them by requests that computed exactly one
    num_sampled: int = 0
    schedule_us: float = 0.0
    prepare_us: float = 0.0  # plan → tensors
    draft_us: float = 0.0  # the draft model proposed tokens
    forward_us: float = 0.0  # tensors → logits
    joined_us: float = 0.0  # of it: rank 0 adding the ranks' numbers, and waiting; 0 on CUDA
    sample_us: float = 0.0  # logits → tokens
    record_us: float = 0.0  # making the draws' own events: the record's cost, at level full
    # the tokens waited that long: the overlapped loop was busy with the next step
    ready_us: float = 0.0
    update_us: float = 0.0  # booking the tokens
    total_us: float = 0.0  # from the start of planning to the end of booking
    loop: str = ""  # "plain" or "overlapped"


class SpecVerified(Event, tag="spec.verified"):
    """A step checked proposals for tokens of a sequence; it has the right ones and one token more.

    The rows of the wrong ones count as not computed; blocks that only they needed are free again.
    """

    position: int = 0  # of the first proposal in the sequence
    num_proposed: int = 0  # proposals
    num_accepted: int = 0  # right ones, up to the first that was wrong
    source: int = -1  # position from which they were copied; −1: from elsewhere
    blocks: list[int] = []  # given back, last first
    why: str = ""  # why not more were accepted


# ------------------------------------------------------------------------------------------- blocks


class BlockAllocated(Event, tag="block.allocated"):
    """The request got fresh blocks, appended to its block table from `index` on."""

    blocks: list[int] = []
    index: int = 0
    why: str = ""


class BlockShared(Event, tag="block.shared"):
    """The request's table now names existing blocks: a prefix-cache hit, or a fork."""

    blocks: list[int] = []
    index: int = 0
    num_tokens: int = 0  # that need not be computed
    why: str = ""


class BlockCached(Event, tag="block.cached"):
    """Full blocks got their hash: from now on an equal prefix finds them."""

    blocks: list[int] = []
    hashes: list[str] = []  # hex, chained: each covers every token before it


class BlockCopied(Event, tag="block.copied"):
    """Copy-on-write: before writing into a block that others read too, the request got its own
    copy.
    """

    src_block: int = 0
    dst_block: int = 0  # taken from the free queue
    index: int = 0  # position in the request's block table
    sharers: int = 0  # requests that keep `src_block`
    why: str = ""


class BlockFreed(Event, tag="block.freed"):
    """The request released its whole block table, in this order.

    A block that no other request uses joins the free queue.
    """

    blocks: list[int] = []
    host_blocks: list[int] = []  # of a swapped-out request that ended: released in the host pool
    why: str = ""


class BlockEvicted(Event, tag="block.evicted"):
    """A cached block can't be found any more: it was taken for another use, or its content is
    invalid.
    """

    block: int = 0
    hash: str = ""
    why: str = ""


class BlockSwappedOut(Event, tag="block.swapped_out"):
    """The contents of a preempted request's blocks are copied to the host pool."""

    blocks: list[int] = []
    host_blocks: list[int] = []
    num_bytes: int = 0


class BlockSwappedIn(Event, tag="block.swapped_in"):
    """The contents of a resumed request's blocks are copied into fresh device blocks.

    Its host blocks are free again.
    """

    blocks: list[int] = []
    host_blocks: list[int] = []
    num_bytes: int = 0


# ------------------------------------------------------------------------------------------ kernels


class KernelLaunched(Event, tag="kernel.launched"):
    """A kernel was launched through `kernels/launch.py` (level `full`)."""

    full_only = True

    name: str = ""
    backend: str = ""  # "torch", "native", "triton"
    grid: list[int] = []
    constexprs: dict[str, Any] = {}
    num_warps: int = 0
    num_stages: int = 0
    registers: int = 0
    shared_bytes: int = 0
    num_bytes: int = 0  # read and written, as counted from the shapes
    flops: int = 0
    duration_us: float = 0.0  # only when profiling
    # share of the machine's measured bandwidth or matrix rate, whichever limits it; when profiling
    share_of_limit: float = 0.0
    why: str = ""  # why this grid, or this variant


class GraphCaptured(Event, tag="graph.captured"):
    """A step of one size was captured: a CUDA graph, or a tape of native kernels."""

    batch_size: int = 0  # rows
    num_tokens: int = 0  # most tokens in all rows, with prompts; 0: each row decodes one token
    num_kernels: int = 0
    duration_ms: float = 0.0


class GraphReplayed(Event, tag="graph.replayed"):
    """A captured graph ran in place of its launches."""

    full_only = True

    batch_size: int = 0
    num_rows: int = 0  # real ones; the rest is padding
    num_tokens: int = 0  # as in graph.captured
    captured_seq: int = 0  # seq of the matching graph.captured


# ------------------------------------------------------------------------------------------- tokens


class Candidate(msgspec.Struct, array_like=True):
    """One token that could have been drawn."""

    token_id: int
    logprob: float  # of the model, before any parameter
    probability: float  # after every parameter; 0 if they excluded it


class SampleDrawn(Event, tag="sample.drawn"):
    """A token was drawn (level `full`)."""

    full_only = True

    index: int = 0  # which of the n sequences
    position: int = 0  # of the drawn token in the sequence
    token_id: int = 0
    logprob: float = 0.0
    rank: int = 0  # 1 = the most probable
    greedy: bool = False
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    uniform: float = 0.0  # the Philox draw in [0, 1), 0 when greedy
    num_kept: int = 0  # tokens left after top-k, top-p and min-p
    num_allowed: int = 0  # tokens that the request's grammar allowed; 0 without one
    removed: float = 0.0  # probability, of the model's own, that the grammar took away
    instead_of: int = -1  # the token that the same draw gives without the grammar; −1: this one
    instead_of_probability: float = 0.0  # of that token, by the model
    candidates: list[Candidate] = []


class TextEmitted(Event, tag="text.emitted", kw_only=True):
    """Text went out to the client (level `full`)."""

    full_only = True

    src: str = "server"
    index: int = 0
    text: str = ""
    num_tokens: int = 0


class TextHeldBack(Event, tag="text.held_back", kw_only=True):
    """Text is held back: it may be the start of a stop string, or part of a character (level
    `full`)."""

    full_only = True

    src: str = "server"
    index: int = 0
    num_chars: int = 0
    why: str = ""


class StopMatched(Event, tag="stop.matched", kw_only=True):
    """A stop string was found in the text, so the request ends."""

    src: str = "server"
    index: int = 0
    stop: str = ""
    num_output_tokens: int = 0


class ToolCalled(Event, tag="tool.called", kw_only=True):
    """A call of a tool was read in the text, to its end."""

    src: str = "server"
    index: int = 0
    call: int = 0  # which call of this answer, from 0
    tool: str = ""  # its name
    num_chars: int = 0  # of its arguments
    forced: bool = False  # the request's tool_choice wants a call; a grammar wrote its form


class ToolUnreadable(Event, tag="tool.unreadable", kw_only=True):
    """Text began like a call of a tool, and isn't written as one."""

    src: str = "server"
    index: int = 0
    num_chars: int = 0  # that are content instead; 0: a call was told, and ends too early
    why: str = ""


class TextTokens(Event, tag="text.tokens", kw_only=True):
    """The texts of token ids.

    It stands before the first event that names them, each id once a record; never with --trace-text
    off. It has no `seq` of its own: the record adds it to what happened.
    """

    src: str = "server"
    texts: dict[int, str] = {}  # token id → its text


# --------------------------------------------------------------------------------------- the engine


class EngineStarted(Event, tag="engine.started"):
    """The engine process has started; nothing is loaded yet."""

    version: str = ""
    config: dict[str, Any] = {}
    versions: dict[str, Any] = {}  # python, torch, transformers, triton
    machine: dict[str, Any] = {}  # device, cores, memory


class EngineModelLoaded(Event, tag="engine.model_loaded"):
    """The weights are in memory."""

    model: str = ""
    architecture: str = ""
    implementation: str = ""  # "native" or "transformers adapter"
    num_parameters: int = 0
    num_bytes: int = 0
    dtype: str = ""
    quantization: str | None = None  # what the checkpoint holds in place of numbers
    duration_s: float = 0.0
    kernels: str = ""  # what computes: "torch", "triton", or "native" and the CPU's variant
    why: str = ""  # why these kernels, where there was a choice


class RankShare(msgspec.Struct, array_like=True):
    """What one rank of a divided model holds."""

    pid: int  # of its process
    num_parameters: int
    num_bytes: int
    num_threads: int
    load_s: float  # until it had its weights; 0 for rank 0, see engine.model_loaded


class EngineDivided(Event, tag="engine.divided"):
    """All ranks have their shares of the model's weights (`--tensor-parallel-size`)."""

    ranks: list[RankShare] = []  # by rank: [pid, parameters, bytes, threads, seconds to load]
    num_heads: int = 0  # query heads of each rank
    num_kv_heads: int = 0  # key and value heads of each rank
    why: str = ""  # what each of them computes


class EngineKvSized(Event, tag="engine.kv_sized"):
    """The number of KV blocks was chosen; `why` has the arithmetic."""

    num_blocks: int = 0
    num_host_blocks: int = 0
    block_size: int = 0  # tokens
    bytes_per_block: int = 0
    num_layers: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    kv_dtype: str = ""
    available_bytes: int = 0
    max_model_len: int = 0
    swap_us_per_block: float = 0.0  # measured at start; 0 without a host pool
    ordered: bool = True  # false: another engine's pool, which may take any free block next
    why: str = ""


class EngineSnapshot(Event, tag="engine.snapshot"):
    """The record begins here: memory is bounded, so the events before it are gone.

    Their result is in `state`, so replay continues exactly. In a download of a record whose
    beginning was dropped, this event comes first.
    """

    num_gone: int = 0  # events before it
    state: dict[str, Any] | None = None  # as `EngineState.to_dict`; null if the record had a gap
    ranks: dict[str, list[int]] = {}  # sequence → [priority, arrival, index]
    planned: list[PlannedStep] = []  # steps that had not returned
    last_seq: int = 0  # of the core's events that are gone
    names: dict[str, str] = {}  # request → its short name in the log
    num_named: int = 0  # short names given out so far
    texts: dict[int, str] = {}  # as in `text.tokens`
    standing: list[AnyEvent] = []  # facts of the engine; how living requests began


class EngineFormatsFound(Event, tag="engine.formats_found", kw_only=True):
    """How the model writes calls of tools and reasoning is known, so answers are taken apart."""

    src: str = "server"
    calls: str = ""  # the format's name; "": calls are text
    reasoning: str = ""  # the format's name; "": reasoning is text
    why: str = ""


class EngineWarning(Event, tag="engine.warning"):
    """Something a user should know."""

    message: str = ""
    events_lost: int = 0  # events that readers of the record couldn't take so far


class EngineFailed(Event, tag="engine.failed"):
    """The engine can't continue."""

    message: str = ""


ALL_EVENTS: tuple[type[Event], ...] = tuple(Event.__subclasses__())
"""Every kind, as they are declared above: in the order of the guide."""

FULL_ONLY = tuple(event for event in ALL_EVENTS if event.full_only)
"""Kinds that only level `full` records; all others are recorded at `steps` too."""

AnyEvent: Any = Union[ALL_EVENTS]  # noqa: UP007 - a tuple can't be spelled with |
"""The union that msgspec decodes a record with."""


def kind(event: Event | type[Event]) -> str:
    """Return the kind of an event as a record writes it, "block.freed"."""
    return event.__struct_config__.tag  # type: ignore[return-value]
