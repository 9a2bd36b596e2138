"""Define the messages between the core and the worker, and between the core and the front end.

The worker gets a `StepPlan` and returns a `StepOutput`. The front end sends `CoreRequest`s and gets
`CoreOutput`s. All are msgspec structs, so that the same types can cross a process boundary. Nothing
else enters or leaves the core.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from engine.sampling_params import SamplingParams
from engine.trace.events import StepRow

# --------------------------------------------------------------------------------- front end ↔ core


class GrammarTokenizer(msgspec.Struct, kw_only=True):
    """Hold what grammars must know of the tokenizer, once for an engine."""

    tokenizer_json: str  # as the tokenizers library writes it
    eos_token_ids: list[int]


class CoreRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Hold one request as the core takes it: token ids, no text."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []  # any of them ends the text, unless ignore_eos
    arrival_ns: int = 0  # CLOCK_MONOTONIC
    priority: int = 0  # lower runs first, under --scheduling-policy priority
    cache_salt: str = ""  # requests share cached blocks only with the same salt
    trace_full: bool = False  # record this request at level `full`


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Hold log-probabilities at one position, of the model itself (before any parameter
    applies)."""

    token_id: int
    logprob: float
    rank: int  # of the token, 1 = most probable
    top_ids: list[int]  # the most probable ones, best first, or those of logprob_token_ids
    top_logprobs: list[float]


class CoreOutput(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """Hold what a step added to one sequence of one request."""

    request_id: str  # of the request as it was sent; siblings of n > 1 have it too
    index: int = 0  # which of its n sequences
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids
    # Of the whole prompt, once, with the first token; the first entry is None.
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None  # "stop", "length", "abort", "error"
    stop_reason: int | None = None  # the stop token id that matched
    keeps_last: bool = False  # the token that ended it is a part of the text
    error: str = ""
    error_param: str = ""  # the parameter that can't be held to, where the request is at fault
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queued_ns: int = 0  # waiting time before its first admission; set on the first output
    first_scheduled_ns: int = 0  # CLOCK_MONOTONIC


class StepStats(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Hold the state of the core after a step. It goes with the step's outputs and feeds
    /metrics."""

    step: int = 0
    num_running: int = 0
    num_waiting: int = 0
    blocks_total: int = 0
    blocks_used: int = 0
    blocks_cached_free: int = 0
    host_blocks_used: int = 0
    num_tokens: int = 0  # computed in this step
    num_preemptions: int = 0  # in this step
    prefix_queries: int = 0  # tokens looked up in the prefix cache in this step
    prefix_hits: int = 0  # found, of the queried
    num_drafts: int = 0  # sequences of the told step for which tokens were proposed
    num_proposed: int = 0  # tokens
    accepted: list[int] = []  # [i]: how often at least i + 1 of a draft's tokens were right
    told_step: int = 0  # step of the outputs sent with this; an earlier one in the overlapped loop
    tokens_told: int = 0  # tokens drawn in it, plus the computed tokens of prompts it completed


# ------------------------------------------------------------------------------------ core ↔ worker


class NewRow(msgspec.Struct, kw_only=True):
    """Hold what the worker must know of a sequence without a row (new, resumed, forked)."""

    token_ids: list[int]  # all tokens known so far: prompt and output
    num_prompt_tokens: int
    params: SamplingParams
    seed: int  # always set
    stop_token_ids: list[int]  # ids that min_tokens masks: eos (unless ignored) and stop_token_ids
    grammar: Any = None  # compiled by `worker/sampling/grammar_compiler.py`; the core passes it on
    trace_full: bool = False


class NewBlocks(NamedTuple):
    """Update a sequence's block table: `table[start:] = blocks`."""

    start: int
    blocks: list[int]


class StepPlan(msgspec.Struct, kw_only=True):
    """State what one step does.

    In this order: drop rows, swap out, swap in, copy blocks, compute rows, sample.

    The worker keeps a persistent row for each sequence: its tokens (it appends the ones it draws)
    and its block table. So a row states only its share of the step, and most have no entry in `new`
    and `tables`. The record holds these same rows: they must not change once they are planned.
    """

    step: int
    rows: list[StepRow]
    new: dict[str, NewRow] = {}  # by sequence
    tables: dict[str, NewBlocks] = {}  # by sequence
    num_tokens: int = 0  # to compute, in all rows
    proposed: dict[str, list[int]] = {}
    """By sequence, proposals for the tokens after its next one. Each has a row of its own, which
    draws the token that follows the proposal; these rows are the last, in this order. `UNKNOWN`:
    the worker's draft model is to propose a token.
    """
    dropped: list[str] = []  # sequences whose rows the worker forgets
    swap_out: list[tuple[int, int]] = []  # (device block, host block)
    swap_in: list[tuple[int, int]] = []  # (host block, device block)
    copies: list[tuple[int, int]] = []  # (source block, destination block), no destination twice
    schedule_us: float = 0.0


class RowDetail(msgspec.Struct, kw_only=True):
    """Hold what only some rows want back."""

    logprobs: list[TokenLogprobs] | None = None  # one for each sampled token of the row
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of this chunk: entry i belongs to the token at position start + i + 1, predicted from
    position start + i; positions from num_prompt_tokens on are left out.
    """
    complete: list[bool] | None = None
    """For each sampled token: it completes the text that the grammar wants; nothing may follow."""
    forced: list[int] = []  # tokens that the grammar forces next, another follows; if asked for
    failure: str = ""  # why no token could be drawn, where it isn't the model's fault
    failed_param: str = ""  # which parameter leaves none


class StepOutput(msgspec.Struct, kw_only=True):
    """Hold the result of a step.

    `tokens[i]` are the tokens drawn for `plan.rows[i]`: none, one, or n; or `NO_TOKEN`.
    """

    step: int
    tokens: list[list[int]]
    details: dict[str, RowDetail] = {}  # by the row's request_id
    drafted: dict[str, list[int]] = {}
    """By sequence, what the draft model proposed. Shorter than planned where its text ends."""
    draft_passes: list[tuple[int, float]] = []
    """(rows, µs) of each pass of the draft model in which every row computed one token."""
    draft_us: float = 0.0  # of all its passes
    prepare_us: float = 0.0
    forward_us: float = 0.0
    sample_us: float = 0.0
    record_us: float = 0.0  # recording the draws, not in sample_us
    joined_us: float = 0.0  # of forward_us, joining the numbers of all ranks
    done_ns: int = 0  # of time.monotonic_ns, when the tokens were there; 0: unknown


class KVShape(msgspec.Struct, kw_only=True):
    """Hold what the worker tells the core once, after loading."""

    num_blocks: int
    num_host_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int
    vocab_size: int
    swap_us_per_block: float = 0.0  # one way, measured
