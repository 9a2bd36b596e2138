"""Show what a grammar forbids, and what that costs (a chapter)."""

from __future__ import annotations

import json
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.rounding import ceil_div
from engine.structured_outputs import StructuredOutputsError, StructuredOutputsParams
from engine.text.form_cache import FormCache
from engine.trace.events import SampleDrawn
from engine.worker.sampling.grammar_compiler import CompiledGrammar
from lab.chapter import CannotShow, Chapter, Expectation, Outcome, quantity
from lab.drawings import Lines, Series
from lab.sampling import question
from lab.workbench import Job, Run, SamplingParams, Step, Workbench

ANSWERS = 8
LONGEST = 96  # tokens of an answer
KINDS = ["story", "fact", "question"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 12},
        "kind": {"enum": KINDS},
        "long": {"type": "boolean"},
        "chapters": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["title", "kind", "long", "chapters"],
    "additionalProperties": False,
}
EXAMPLE = '{"title":"The old fox","kind":"story","long":false,"chapters":3}'


def _grammar(bench: Workbench) -> CompiledGrammar:
    """Compile the schema for the model's tokens. Raises `CannotShow` if they can't follow it."""
    form = StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True)
    forms = FormCache(bench.tokenizer)
    try:
        text = forms.find(form).grammar
        bench.runner.grammars.set_tokenizer(forms.source())
    except StructuredOutputsError as error:
        raise CannotShow(str(error)) from None
    return bench.runner.grammars.compile(text)


def _allowed(matcher: Any, vocab_size: int) -> np.ndarray:
    """Return the tokens that may come next, int64 [allowed]."""
    mask = np.zeros(ceil_div(vocab_size, 32), np.int32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def _walk(bench: Workbench, grammar: CompiledGrammar) -> tuple[list[int], float]:
    """Write the example, each time with the longest token that is allowed.

    Return how many were allowed at each token, and the seconds of a mask, on average.
    """
    matcher, left, counts, seconds = grammar.matcher([]), EXAMPLE, [], 0.0
    while left:
        started = time.perf_counter()
        allowed = _allowed(matcher, bench.kv.vocab_size)
        seconds += time.perf_counter() - started
        texts = ((token, bench.tokenizer.token(token).text) for token in allowed.tolist())
        fitting = [(len(text), token) for token, text in texts if text and left.startswith(text)]
        length, token = max(fitting)
        counts.append(len(allowed))
        matcher.consume_token(token)
        left = left[length:]
    return counts, seconds / len(counts)


def _jobs(bench: Workbench, grammar: CompiledGrammar | None, in_full: bool) -> list[Job]:
    prompt = question(bench)
    length = min(LONGEST, bench.kv.max_model_len - len(prompt))
    return [
        Job(
            f"answer-{seed}", prompt, length,
            SamplingParams(temperature=1.0, max_tokens=length, seed=seed, ignore_eos=True),
            in_full=in_full, grammar=grammar,
        )
        for seed in range(ANSWERS)
    ]  # fmt: skip


def predict(bench: Workbench) -> list[Expectation]:
    grammar = _grammar(bench)
    first = _allowed(grammar.matcher([]), bench.kv.vocab_size)
    chances = torch.softmax(bench.next_logits(question(bench)), 0).double()
    _walk(bench, grammar)  # the first time builds the grammar's states
    counts, seconds = _walk(bench, grammar)
    step = bench.step_cost.decode(ANSWERS)
    return [
        Expectation(
            "removed", "probability that the first mask removes",
            1 - float(chances[torch.from_numpy(first)].sum()), "share",
            f"the sum over all tokens but the {len(first)} that may begin such a text",
        ),
        Expectation(
            "single", "tokens where only one is allowed", counts.count(1) / len(counts), "share",
            f"{counts.count(1)} of the {len(counts)} tokens of {EXAMPLE}",
        ),
        Expectation(
            "fitting", f"answers that follow the schema, of {ANSWERS}", ANSWERS, "",
            "no other text can be drawn",
        ),
        Expectation(
            "cost", f"a step of {ANSWERS} answers with masks, over one without",
            1 + ANSWERS * seconds / step, "×",
            f"a mask takes {quantity(seconds, 's')}, a step {quantity(step, 's')}",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    grammar = _grammar(bench)
    held = bench.run([_jobs(bench, grammar, in_full=True)], enable_prefix_caching=True)
    free = bench.run([_jobs(bench, None, in_full=False)])
    ways = {
        "held": partial(bench.run, [_jobs(bench, grammar, in_full=False)]),
        "free": partial(bench.run, [_jobs(bench, None, in_full=False)]),
    }
    num_prompt = len(question(bench))
    steps = {name: steps_of_all(run, num_prompt) for name, run in bench.in_turns(ways).items()}
    seconds = {name: _step_seconds(found) for name, found in steps.items()}
    computed = statistics.mean(step.finished.num_tokens for step in steps["held"])
    texts = {name: bench.tokenizer.decode(tokens) for name, tokens in held.tokens.items()}
    draws = held.of(SampleDrawn)
    fitting = sum(map(fits, texts.values()))
    removed = statistics.mean(draw.removed for draw in draws)
    other = sum(draw.instead_of >= 0 for draw in draws)
    before = bench.tokenizer.decode(free.tokens["answer-0"][:20])
    return Outcome(
        {
            "removed": draws[0].removed,
            "single": sum(draw.num_allowed == 1 for draw in draws) / len(draws),
            "fitting": fitting,
            "cost": seconds["held"] / seconds["free"],
        },
        [
            f"with seed 0: {texts['answer-0']}",
            f"without the schema: {' '.join(before.split())} …",
            f"of {len(draws):,} tokens {other:,} would have been others; a mask removed"
            f" {quantity(removed, 'share')} of the probability on average",
            f"with the schema such a step computed {computed:.1f} tokens on average: what the"
            " grammar forces joins the drawn ones, several tokens a step",
            f"compiling the schema took {quantity(grammar.duration_us / 1e6, 's')}, once for all"
            " requests that have it",
        ],
        [
            Lines("Allowed tokens, seed 0", "token of the answer", "allowed",
                  [Series("allowed", _points(draws, "num_allowed"))], log_y=True),
            Lines("Probability removed, seed 0", "token of the answer", "share",
                  [Series("removed", _points(draws, "removed"))]),
        ],
    )  # fmt: skip


def steps_of_all(run: Run, num_prompt: int) -> list[Step]:
    """Return the steps in which all answers go on. A forced token has a row of its own."""
    return [
        step
        for step in run.steps
        if len({row.request_id for row in step.planned.rows}) == ANSWERS
        and all(row.start >= num_prompt for row in step.planned.rows)
    ]


def _step_seconds(steps: list[Step]) -> float:
    """Return the median time of a step."""
    return statistics.median(step.finished.total_us for step in steps) / 1e6


def _points(draws: list[SampleDrawn], name: str) -> list[tuple[float, float]]:
    own = [draw for draw in draws if draw.request_id == "answer-0"]
    return [(place, float(getattr(draw, name))) for place, draw in enumerate(own)]


def fits(text: str) -> bool:
    """Return whether a text follows the schema."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or list(found) != SCHEMA["required"]:
        return False
    title, kind, long, chapters = found.values()
    return (
        isinstance(title, str)
        and len(title) <= 12
        and kind in KINDS
        and isinstance(long, bool)
        and isinstance(chapters, int)
        and 1 <= chapters <= 9
    )


CHAPTER = Chapter(
    "grammars",
    "Structured output: a text that can't be wrong",
    "A program that reads an answer wants it in a form, such as JSON of a schema. A grammar made of"
    " the form says before each draw which tokens may follow, and the mask takes the probability of"
    " all others away. The model still chooses among what is left, and where one token is left"
    " nothing is chosen at all.",
    predict,
    run,
    "engine/worker/sampling/grammar_masks.py",
    "how a mask is found for each sequence, and when",
)
