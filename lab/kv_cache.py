"""Generate with the KV cache and without it (a chapter)."""

from __future__ import annotations

from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Lines, Series
from lab.workbench import Job, Run, Workbench


def _lengths(bench: Workbench) -> tuple[int, int]:
    """Return (prompt, output) in tokens."""
    prompt, output = (96, 32) if bench.quick else (128, 128)
    while prompt + output > bench.kv.max_model_len:
        prompt, output = prompt // 2, output // 2
    if output < 4:
        raise CannotShow(f"a context of {bench.kv.max_model_len} tokens is too short for it")
    return prompt, output


def predict(bench: Workbench) -> list[Expectation]:
    prompt, output = _lengths(bench)
    cost = bench.step_cost
    lengths = range(prompt, prompt + output)
    with_cache = cost.prefill(prompt) + (output - 1) * cost.decode(1)
    without = sum(map(cost.prefill, lengths))
    return [
        Expectation(
            "computed", "tokens computed with a cache", prompt + output - 1, "",
            f"{prompt} of the prompt, then one for each of {output - 1} more",
        ),
        Expectation(
            "recomputed", "tokens computed without", sum(lengths), "",
            f"{lengths[0]} + {lengths[1]} + … + {lengths[-1]}: everything, for each new token",
        ),
        Expectation(
            "seconds", "time with a cache", with_cache, "s",
            f"a prompt, then {output - 1} steps of {quantity(cost.decode(1), 's')},"
            " as measured when the lab began",
        ),
        Expectation(
            "slow_seconds", "time without", without, "s",
            f"{output} prompts of {quantity(cost.fixed, 's')}"
            f" + {quantity(cost.token, 's')} a token",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    prompt_length, output = _lengths(bench)
    prompt = bench.prompt(prompt_length)
    cached = bench.run([[Job("cached", prompt, output)]])
    tokens, runs = list(prompt), []
    for i in range(output):
        runs.append(bench.run([[Job(f"again-{i}", tokens, 1)]]))
        tokens += runs[-1].tokens[f"again-{i}"]
    seconds = sum(run.seconds for run in runs)
    same = tokens[prompt_length:] == cached.tokens["cached"]
    finding = "both ways gave the same tokens"
    if not same:
        finding = (
            "the two ways gave different tokens: sums in another order round differently, and two"
            " tokens were nearly equally probable"
        )
    return Outcome(
        {
            "computed": cached.num_computed,
            "recomputed": sum(run.num_computed for run in runs),
            "seconds": cached.seconds,
            "slow_seconds": seconds,
        },
        [
            f"the cache made it {quantity(seconds / cached.seconds, '×')} as fast; {finding}",
            f"its price: {quantity(_held(cached), 'B')} of memory at the end",
        ],
        [
            Lines(
                "Milliseconds for each token, by the length of the text before it",
                "tokens",
                "ms",
                [
                    Series("with a cache", _milliseconds(cached, prompt_length)),
                    Series(
                        "without",
                        [
                            point
                            for i, run in enumerate(runs)
                            for point in _milliseconds(run, prompt_length + i)
                        ],
                    ),
                ],
            )
        ],
    )


def _milliseconds(run: Run, first: int) -> list[tuple[float, float]]:
    return [(first + i, step.finished.total_us / 1e3) for i, step in enumerate(run.steps)]


def _held(run: Run) -> int:
    return max(step.planned.blocks_used for step in run.steps) * run.kv.bytes_per_block


CHAPTER = Chapter(
    "kv-cache",
    "The KV cache: compute each token once",
    "Attention looks back at the keys and values of every token before. They never change, so they"
    " are kept, and a step computes only the one token that is new. Without the cache the whole"
    " text is computed again for each token.",
    predict,
    run,
    "engine/core/request.py",
    "rule 1: num_computed_tokens counts the tokens whose K/V are in the cache",
)
