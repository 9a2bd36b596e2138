"""Provoke preemption, by recompute and by swap (a chapter)."""

from __future__ import annotations

import statistics
from functools import partial

from engine.trace.events import (
    BlockSwappedIn,
    BlockSwappedOut,
    RequestPreempted,
    RequestResumed,
)
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import EMPTY, Bar, Bars, Lanes
from lab.spread import compared
from lab.workbench import Job, Run, Workbench

RUNS, AGAIN, WAITS = 0, 1, EMPTY


def _blocks(bench: Workbench) -> int:
    """Return the blocks of a prompt; the answer takes as many."""
    blocks = min(8 if bench.quick else 16, bench.kv.max_model_len // bench.kv.block_size // 2)
    if blocks < 2:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens is too short for it")
    if bench.kv.num_host_blocks < 2 * blocks:
        raise CannotShow("the engine has no host pool large enough to swap a request out")
    return blocks


def _pool(bench: Workbench) -> int:
    """Return a pool with room for both requests at first, for one and a half in the end."""
    return 3 * _blocks(bench)


def _victim_tokens(bench: Workbench) -> int:
    """Return the tokens in the cache when a block is missing.

    Both requests hold as many, and both need one more block.
    """
    each = _pool(bench) // 2
    return each * bench.kv.block_size


def _jobs(bench: Workbench, name: str) -> list[Job]:
    length = _blocks(bench) * bench.kv.block_size
    return [Job(f"{name}-{i}", bench.prompt(length, i), length) for i in range(2)]


def predict(bench: Workbench) -> list[Expectation]:
    tokens, cost = _victim_tokens(bench), bench.step_cost
    blocks, swap_us = tokens // bench.kv.block_size, bench.kv.swap_us_per_block
    return [
        Expectation(
            "tokens", "tokens that the victim had computed", tokens, "",
            f"{_pool(bench)} blocks are full when each of the two holds {blocks}",
        ),
        Expectation(
            "recompute", "recompute: computing them again", cost.prefill(tokens + 1), "s",
            f"one step of {tokens + 1} tokens, {quantity(cost.token, 's')} each",
        ),
        Expectation(
            "bytes", "swap: bytes out, and in again", blocks * bench.kv.bytes_per_block, "B",
            f"{blocks} blocks of {quantity(bench.kv.bytes_per_block, 'B')}",
        ),
        Expectation(
            "swap", "swap: copying them out and in", 2 * blocks * swap_us / 1e6, "s",
            f"2 × {blocks} blocks × {swap_us:.1f} µs, which the engine measured at its start",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    ways = {
        mode: partial(
            bench.run, [_jobs(bench, mode)], num_blocks=_pool(bench), preemption_mode=mode
        )
        for mode in ("recompute", "swap", "auto")
    }
    tries = bench.tries({"roomy": partial(bench.run, [_jobs(bench, "roomy")]), **ways})
    runs = {mode: min(tries[mode], key=lambda run: run.seconds) for mode in tries}
    roomy = runs.pop("roomy")
    preempted = {mode: run.of(RequestPreempted)[0] for mode, run in runs.items()}
    wanted = [roomy.tokens[f"roomy-{i}"] for i in range(2)]
    same = [mode for mode, run in runs.items()
            if [run.tokens[f"{mode}-{i}"] for i in range(2)] == wanted]  # fmt: skip
    recompute = [_recompute_seconds(run) for run in tries["recompute"]]
    swap = [_swap_seconds(run) for run in tries["swap"]]
    whole = {name: [run.seconds for run in runs] for name, runs in tries.items()}
    auto = preempted["auto"]
    moved = runs["swap"].of(BlockSwappedOut)[0].num_bytes
    answers = "all answers are those of a run with enough memory"
    if len(same) < len(runs):
        other = ", ".join(mode for mode in runs if mode not in same)
        answers = f"answers after {other} differ: rounding between nearly equal tokens"
    titles = {"roomy": "enough memory"}
    return Outcome(
        {
            "tokens": preempted["recompute"].num_computed_tokens,
            "recompute": statistics.median(recompute),
            "bytes": moved,
            "swap": statistics.median(swap),
        },
        [
            "bringing them back: " + compared("recompute", recompute, "swap", swap),
            "both requests in all: "
            + compared("with recompute", whole["recompute"], "with swap", whole["swap"]),
            f"auto chose {auto.mode}: {auto.mode_why}",
            f"recompute computed {runs['recompute'].num_computed - roomy.num_computed:,} tokens a"
            f" second time, swap"
            f" {runs['swap'].num_computed - roomy.num_computed:,}; {answers}",
        ],
        [
            _lanes(runs["recompute"], "recompute"),
            _lanes(runs["swap"], "swap"),
            Bars("The two requests in all, with the lowest and the highest try", "s", [
                Bar(titles.get(name, name), [(statistics.median(seconds), i)],
                    spread=(min(seconds), max(seconds)))
                for i, (name, seconds) in enumerate(whole.items())
            ]),
        ],
        tries={"recompute": recompute, "swap": swap},
    )  # fmt: skip


def _decode_us(run: Run, field: str) -> float:
    """Return the median of a field over steps in which everybody decodes."""
    return statistics.median(
        getattr(step.finished, field)
        for step in run.steps
        if all(row.num_tokens == 1 for row in step.planned.rows)
    )


def _recompute_seconds(run: Run) -> float:
    """Return the time of the step that computes the victim's tokens again."""
    resumed = {event.step for event in run.of(RequestResumed)}
    return sum(s.finished.total_us for s in run.steps if s.planned.step in resumed) / 1e6


def _swap_seconds(run: Run) -> float:
    """Return the time that steps with copies spend beyond the others before they compute."""
    copying = {event.step for event in run.of(BlockSwappedOut) + run.of(BlockSwappedIn)}
    usual = _decode_us(run, "prepare_us")
    return (
        sum(step.finished.prepare_us - usual for step in run.steps if step.planned.step in copying)
        / 1e6
    )


def _lanes(run: Run, mode: str) -> Lanes:
    first = run.steps[0].planned.step
    lanes: dict[str, list[tuple[float, float, int]]] = {f"{mode}-{i}": [] for i in range(2)}
    for step in run.steps:
        now = step.planned.step - first
        for row in step.planned.rows:
            spans = lanes[row.request_id]
            again = AGAIN if row.num_tokens > 1 and spans else RUNS
            if spans and spans[-1][1] < now:
                spans.append((spans[-1][1], now, WAITS))
            if spans and spans[-1][1:] == (now, again):
                spans[-1] = (spans[-1][0], now + 1, again)
            else:
                spans.append((now, now + 1, again))
    legend = [("runs", RUNS), ("waits, preempted", WAITS)]
    if mode == "recompute":
        legend.append(("computes its tokens again (one step)", AGAIN))
    named = [(f"request {i + 1}", spans) for i, spans in enumerate(lanes.values())]
    return Lanes(f"By {mode}: two requests, memory for one and a half", "step", named, legend)


CHAPTER = Chapter(
    "preemption",
    "Preemption: recompute or swap",
    "Nothing is reserved, so memory can run out while requests run, and then the one that came last"
    " gives its blocks back and waits. Its keys and values come back either by computing them"
    " again from its tokens, or by a copy that was kept in host memory. Which is cheaper depends on"
    " the machine and the model, so the engine measures both and says what it chose.",
    predict,
    run,
    "engine/core/preemption.py",
    "the two costs, and how they are learned while the engine runs",
)
