"""Show sampling, from the record of every draw (a chapter)."""

from __future__ import annotations

import math

import torch

from engine.sampling_params import SamplingParams
from engine.text.chat_template import ChatTemplate
from engine.trace.events import SampleDrawn
from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.drawings import Bar, Bars, printable
from lab.workbench import Job, Workbench

QUESTION = "Tell me a story about a fox."
LOOK_AHEAD = 16  # tokens among which the most open choice is searched
SHOWN = 6
WAYS: dict[str, dict] = {
    "temperature 0": {"temperature": 0.0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 1.5": {"temperature": 1.5},
    "top-k 5": {"temperature": 1.0, "top_k": 5},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
}


def _num_draws(bench: Workbench) -> int:
    return 48 if bench.quick else 200


def _prompt(bench: Workbench) -> list[int]:
    """Return a question, and its most probable answer up to the most open choice."""
    prompt = question(bench)
    room = bench.kv.max_model_len - len(prompt) - 2
    run = bench.run([[Job("look-ahead", prompt, min(LOOK_AHEAD, room), in_full=True)]])
    draws = run.of(SampleDrawn)
    open_place = min(range(len(draws)), key=lambda i: draws[i].logprob)
    return prompt + run.tokens["look-ahead"][:open_place]


def question(bench: Workbench) -> list[int]:
    """Return the tokens of a question to a chat model, or a beginning for another."""
    tokenizer = bench.tokenizer
    if tokenizer.facts.chat_template:
        text = ChatTemplate(tokenizer).render([{"role": "user", "content": QUESTION}])
        return tokenizer.encode(text, add_special_tokens=False)
    return tokenizer.encode("Once upon a time")


def _distribution(logits: torch.Tensor, options: dict) -> torch.Tensor:
    """Return probabilities in float64, most probable first: temperature, then top-k, then top-p."""
    logits = logits.double().cpu()
    if options["temperature"] == 0:
        return torch.ones(1, dtype=torch.float64)
    chances = torch.softmax(logits / options["temperature"], 0).sort(descending=True).values
    if "top_k" in options:
        chances = chances[: options["top_k"]]
    if "top_p" in options:
        before = chances.cumsum(0) - chances
        chances = chances[before < options["top_p"] * chances.sum()]
    return chances / chances.sum()


def _expected_distinct(chances: torch.Tensor, draws: int) -> float:
    """Return the number of different tokens to expect in so many draws."""
    return float((1 - (1 - chances) ** draws).sum())


def predict(bench: Workbench) -> list[Expectation]:
    logits, draws = bench.next_logits(_prompt(bench)), _num_draws(bench)
    kept = {name: _distribution(logits, options) for name, options in WAYS.items()}
    return [
        Expectation(
            name,
            f"{name}: different tokens in {draws} draws",
            _expected_distinct(chances, draws),
            "",
            f"{len(chances):,} left to draw from, the most probable with"
            f" {quantity(float(chances[0]), 'share')}",
        )
        for name, chances in kept.items()
    ]


def run(bench: Workbench) -> Outcome:
    prompt, draws = _prompt(bench), _num_draws(bench)
    outcome = Outcome()
    for number, (name, options) in enumerate(WAYS.items()):
        jobs = [
            Job(
                f"draw-{seed}", prompt, 1,
                SamplingParams(max_tokens=1, seed=seed, ignore_eos=True, **options), in_full=True,
            )
            for seed in range(draws)
        ]  # fmt: skip
        drawn = bench.run([jobs], enable_prefix_caching=True).of(SampleDrawn)
        tokens = [event.token_id for event in drawn]
        outcome.measured[name] = len(set(tokens))
        outcome.findings.append(
            f"{name}, tokens left to draw from: {drawn[0].num_kept:,}; with seed 1 it goes on"
            f" {_text(bench, prompt, options)}"
        )
        if number in (1, 2):
            outcome.drawings.append(_chances(bench, name, drawn))
    return outcome


def _text(bench: Workbench, prompt: list[int], options: dict) -> str:
    """Return how the answer continues, drawn with these parameters."""
    length = min(16, bench.kv.max_model_len - len(prompt))
    params = SamplingParams(max_tokens=length, seed=1, ignore_eos=True, **options)
    run = bench.run([[Job("text", prompt, length, params)]])
    text = bench.tokenizer.decode(run.tokens["text"])
    return "“…" + printable(" ".join(text.split())) + " …”"


def _chances(bench: Workbench, name: str, drawn: list[SampleDrawn]) -> Bars:
    """Draw the chance that the record states for each token, and how often it was drawn."""
    tokens = [event.token_id for event in drawn]
    bars = []
    for candidate in drawn[0].candidates[:SHOWN]:
        share = tokens.count(candidate.token_id) / len(tokens)
        text = repr(bench.tokenizer.token(candidate.token_id).text)
        before = quantity(math.exp(candidate.logprob), "share")
        bars.append(Bar(text, [(candidate.probability, 0)]))
        bars.append(Bar("", [(share, 1)], f"drawn {quantity(share, 'share')} (model: {before})"))
    return Bars(f"{name}: chance and draws of the most probable tokens", "share", bars,
                [("chance", 0), ("drawn", 1)])  # fmt: skip


CHAPTER = Chapter(
    "sampling",
    "Sampling: from probabilities to a token",
    "The model gives every token of its vocabulary a probability, and one of them is drawn."
    " Temperature sharpens or flattens these chances, top-k keeps the k best, top-p the best that"
    " together reach p. The draw depends on the seed and the position alone, so a seed repeats its"
    " text whatever runs beside it.",
    predict,
    run,
    "engine/worker/sampling/exact_draw.py",
    "how a token is drawn, and from what",
)
