"""Measure prefix caching (a chapter)."""

from __future__ import annotations

import statistics

from engine.rounding import ceil_div
from engine.trace.events import BlockShared, RequestAdmitted
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, Cells
from lab.spread import compared
from lab.workbench import Job, Workbench

OUTPUT = 4
QUESTION = 12  # tokens that only the asker has


def _shared(bench: Workbench) -> int:
    """Return the tokens of the common beginning, deliberately not a whole number of blocks."""
    longest = 512 if bench.quick else 1024
    shared = min(longest, bench.kv.max_model_len - QUESTION - OUTPUT) - bench.kv.block_size // 2
    if shared < bench.kv.block_size:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens has no block to share")
    return shared


def _cached(bench: Workbench) -> int:
    size = bench.kv.block_size
    return _shared(bench) // size * size


def predict(bench: Workbench) -> list[Expectation]:
    shared, cached, cost = _shared(bench), _cached(bench), bench.step_cost
    size, whole = bench.kv.block_size, _shared(bench) + QUESTION
    return [
        Expectation(
            "cached", "second request: tokens from the cache", cached, "",
            f"whole blocks of {size} in {shared} common tokens: {shared // size} × {size}",
        ),
        Expectation(
            "computed", "second request: tokens computed", whole - cached, "",
            f"the rest of its {whole}",
        ),
        Expectation(
            "cold", "first token of the first", cost.prefill(whole), "s",
            f"{quantity(cost.fixed, 's')} + {whole} × {quantity(cost.token, 's')}",
        ),
        Expectation(
            "warm", "first token of the second", cost.prefill(whole - cached), "s",
            f"the same for {whole - cached} tokens",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    beginning = bench.prompt(_shared(bench))

    def batches(name: str) -> list[list[Job]]:
        # The questions differ from their first token on, so no block beyond the beginning matches.
        questions = [bench.prompt(QUESTION, 3), bench.prompt(QUESTION, 3)[::-1]]
        questions[1][0] = (questions[0][0] + 1) % bench.kv.vocab_size
        return [
            [Job(f"{name}-{i}", beginning + question, OUTPUT)]
            for i, question in enumerate(questions)
        ]

    tries = bench.tries(
        {
            "on": lambda: bench.run(batches("on"), enable_prefix_caching=True),
            "off": lambda: bench.run(batches("off"), enable_prefix_caching=False),
        }
    )
    on, off = (min(runs, key=lambda run: run.seconds) for runs in tries.values())
    cold, warm = ([run.first_s[f"on-{i}"] for run in tries["on"]] for i in range(2))
    admitted = {event.request_id: event for event in on.of(RequestAdmitted)}
    cached = admitted["on-1"].num_cached_tokens
    whole = admitted["on-1"].num_tokens
    shared = [block for event in on.of(BlockShared) for block in event.blocks]
    same = [on.tokens[f"on-{i}"] == off.tokens[f"off-{i}"] for i in range(2)]
    answers = "the answers are those of a run without the prefix cache"
    if not all(same):
        answers = "an answer differs from the run without: rounding between nearly equal tokens"
    size = bench.kv.block_size
    own = ceil_div(whole, size) - len(shared)
    return Outcome(
        {
            "cached": cached,
            "computed": whole - cached,
            "cold": statistics.median(cold),
            "warm": statistics.median(warm),
        },
        [
            "first token: " + compared("of the first request", cold, "of the second", warm),
            f"with the cache off they came after {quantity(off.first_s['off-0'], 's')} and"
            f" {quantity(off.first_s['off-1'], 's')}",
            f"{len(shared)} blocks were shared, not copied:"
            f" {quantity(len(shared) * bench.kv.bytes_per_block, 'B')} that need not be held"
            f" twice; {answers}",
        ],
        [
            Bars(
                "Tokens of each prompt",
                "",
                [
                    Bar("first request", [(admitted["on-0"].num_tokens, 1)]),
                    Bar("second request", [(cached, 0), (whole - cached, 1)]),
                ],
                [("from the cache", 0), ("computed", 1)],
            ),
            Cells(
                "The second request's block table",
                [("blocks", [0] * len(shared) + [1] * own)],
                [("shared with the first", 0), ("its own", 1)],
            ),
        ],
        tries={"cold": cold, "warm": warm},
    )


CHAPTER = Chapter(
    "prefix",
    "Prefix caching: the same beginning, computed once",
    "Many requests begin alike: the same instructions, the same document, the same conversation so"
    " far. A full block is named by a hash of its tokens and of all tokens before it, so an equal"
    " beginning is found by its name. The blocks are then shared, and only what differs is"
    " computed.",
    predict,
    run,
    "engine/core/block_pool.py",
    "block hashes, reference counts and eviction",
)
