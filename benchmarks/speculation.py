"""Measure what proposed tokens gain, by kind of text: one request at a time, and 64 at once.

    python -m benchmarks.speculation    writes benchmarks/results/<machine>/speculation.{json,md}

SmolLM2 with its real weights answers in this process, with `--speculative-config` and without, in
turn. Each prompt's time is the shortest of the rounds, because other programs make single ones
slow; its beginning is in the prefix cache from the second round on, so that decoding is measured.
Beside the tokens of a step stands what the same text allows any look-up (`lookup_bound.py`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pydoc_data.topics import topics

from benchmarks.lookup_bound import fewest_steps
from benchmarks.machine import cpu_name
from benchmarks.machine_folder import keep_results, machine_folder
from engine import LLM, SamplingParams
from engine.config.speculative import speculation
from engine.trace import events as ev
from engine.trace.command import run_command

MODEL = "smollm2"
LOOKUP = {"method": "ngram"}
TOGETHER = 64
PASSAGE = 1200  # characters

PLACES = ["Lyon", "Porto", "Graz", "Turku", "Bergen", "Ghent", "Split", "Leeds"]


def summaries() -> list[str]:
    passages = [topics[name][:PASSAGE] for name in ("assert", "del", "import", "with", "raise")]
    return [f"Summarize this text, quoting its own words:\n\n{one}" for one in passages]


def edits() -> list[str]:
    functions: list[Callable] = [
        textwrap.shorten, inspect.cleandoc, textwrap.indent, inspect.unwrap, json.dumps
    ]  # fmt: skip
    sources = [inspect.getsource(one)[:PASSAGE] for one in functions]
    return [f"Write this Python function again, with comments:\n\n{one}" for one in sources]


def records() -> list[str]:
    lists = []
    for first in range(5):
        rows = [
            f"{place}, {7 * i + first} rooms, open from {1900 + 13 * i}"
            for i, place in enumerate(PLACES[first:])
        ]
        lists.append("Write these lines as a JSON list of objects:\n\n" + "\n".join(rows))
    return lists


PEOPLE = ["Ada Moreau", "Ivan Petrov", "Grace Lindqvist", "Omar Haddad", "Mei Tanaka"]
FIELDS = '"name", "city", "guests", "arrival", "nights" and "email"'


def extractions() -> list[str]:
    records = []
    for i, (person, place) in enumerate(zip(PEOPLE, PLACES)):
        email = person.lower().replace(" ", ".") + "@example.org"
        records.append(
            f"Hello, my name is {person}. We are {i + 2} guests and would like a room in {place}"
            f" from 2027-0{i + 3}-1{i} on, for {i + 3} nights. Please write to {email}."
        )
    return [f"Write this message as a JSON object with {FIELDS}:\n\n{one}" for one in records]


PAGES = ("assert", "nonlocal", "import", "global", "exceptions")


def _paragraph(name: str) -> str:
    """Return the longest paragraph, but for very long ones, of a page of Python's reference."""
    paragraphs = (" ".join(one.split()) for one in topics[name].split("\n\n"))
    return max((one for one in paragraphs if len(one) < PASSAGE), key=len)


def rewritings() -> list[str]:
    return [
        "Write this paragraph again, with each sentence on a line of its own:\n\n"
        + _paragraph(name)
        for name in PAGES
    ]


def quotations() -> list[str]:
    return [
        f"{topics[name][:PASSAGE]}\n\nQuestion: What does this passage say about"
        f' "{name}"? Answer by quoting the sentences of the passage that say it.'
        for name in PAGES
    ]


def stories() -> list[str]:
    subjects = ["a lighthouse", "a lost key", "two rivers", "a clockmaker", "the last train"]
    return [f"Tell me a story about {one}." for one in subjects]


KINDS = {
    "summary": summaries,
    "edit of code": edits,
    "JSON": records,
    "free text": stories,
    "JSON of a message": extractions,
    "rewritten paragraph": rewritings,
    "answer that quotes": quotations,
}
SAMPLED = {
    "greedy": SamplingParams(temperature=0.0, ignore_eos=True),
    "temperature 0.8": SamplingParams(temperature=0.8, top_p=0.95, seed=3, ignore_eos=True),
}


@dataclass
class Case:
    """Hold one prompt's figures: without proposals and with them."""

    kind: str
    sampled: str
    requests: int
    plain_s: float = float("inf")
    proposing_s: float = float("inf")
    tokens: int = 0
    steps: int = 0  # with proposals
    proposed: int = 0
    accepted: int = 0
    best_steps: int = 0  # the fewest that any look-up could have needed for this text
    same: bool = True  # token for token

    @property
    def gain(self) -> float:
        return self.plain_s / self.proposing_s


class Counted:
    """Count steps and proposals of an engine, from its record."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.seen: list[ev.Event] = []
        llm.recorder.subscribe(self.seen.extend)

    def since_last(self) -> tuple[int, int, int]:
        self.llm.recorder.flush()
        verified = [event for event in self.seen if isinstance(event, ev.SpecVerified)]
        steps = sum(isinstance(event, ev.StepFinished) for event in self.seen)
        self.seen.clear()
        return (
            steps,
            sum(event.num_proposed for event in verified),
            sum(event.num_accepted for event in verified),
        )


def measure(num_prompts: int, num_tokens: int, rounds: int) -> list[Case]:
    """Return a case for each kind, way of sampling and prompt, and for many requests at once."""
    options = {"dtype": "bfloat16", "log_format": "off", "max_model_len": 2048}
    asked = speculation(LOOKUP)
    assert asked is not None
    with ExitStack() as stack:
        plain = stack.enter_context(LLM(MODEL, **options))
        proposing = stack.enter_context(LLM(MODEL, speculative_config=LOOKUP, **options))
        counted = Counted(proposing)
        cases = []
        for case, talks, params in _cases(num_prompts, num_tokens):
            for turn in range(rounds):
                plain_s, texts = _timed(plain, talks, params)
                proposing_s, again = _timed(proposing, talks, params)
                expected, answers = ([answer for _, answer in its] for its in (texts, again))
                figures = counted.since_last()
                if turn:  # the first fills the caches, and tapes steps
                    case.plain_s = min(case.plain_s, plain_s)
                    if proposing_s < case.proposing_s:
                        case.proposing_s = proposing_s
                        case.steps, case.proposed, case.accepted = figures
                case.same = case.same and answers == expected
                case.tokens = sum(map(len, answers))
            if len(talks) == 1:
                case.best_steps = fewest_steps(*texts[0], asked.num_speculative_tokens)
            cases.append(case)
    return cases


def _cases(num_prompts: int, num_tokens: int) -> Iterator[tuple[Case, list, SamplingParams]]:
    for kind, prompts in KINDS.items():
        for sampled, base in SAMPLED.items():
            params = base.clone()
            params.max_tokens = num_tokens
            for prompt in prompts()[:num_prompts]:
                yield Case(kind, sampled, 1), [_talk(prompt)], params
    every = [_talk(prompt) for prompts in KINDS.values() for prompt in prompts()[:num_prompts]]
    params = SAMPLED["greedy"].clone()
    params.max_tokens = num_tokens // 2
    together = (every * TOGETHER)[:TOGETHER]
    yield Case("all kinds", "greedy", TOGETHER), together, params


def _talk(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


Text = tuple[list[int], list[int]]
"""The tokens of a prompt and of its answer."""


def _timed(llm: LLM, talks: list, params: SamplingParams) -> tuple[float, list[Text]]:
    started = time.perf_counter()
    answers = llm.chat(talks, params, use_tqdm=False)
    taken = time.perf_counter() - started
    return taken, [
        (list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)) for answer in answers
    ]


def markdown(cases: list[Case], num_tokens: int, rounds: int) -> str:
    """Return the table: a line for each kind and way of sampling."""
    lines = [
        f"Measured on {cpu_name()}, {time.strftime('%Y-%m-%d')}: SmolLM2-135M-Instruct in bf16,"
        f" {num_tokens} tokens a request, with `--speculative-config '{json.dumps(LOOKUP)}'` beside"
        f" without, in turn; each prompt's shortest of {rounds - 1} times, after one that is not"
        " timed, from which chances are known, too. At best: tokens a step"
        " if of all places at which the last token stood before always the best one were copied,"
        " which nobody knows. Other programs ran too. Made by `python -m benchmarks.speculation`.",
        "",
        "| text | sampled | requests at once | accepted of proposed | tokens a step | at best"
        " | tokens/s without | with | gain | same text |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.kind, case.sampled, case.requests), []).append(case)
    for (kind, sampled, requests), its in groups.items():
        tokens = sum(case.tokens for case in its)
        plain, proposing = (
            sum(getattr(c, f"{way}_s") for c in its) for way in ("plain", "proposing")
        )
        proposed = sum(case.proposed for case in its)
        accepted = sum(case.accepted for case in its)
        share = f"{accepted / proposed:.0%} of {proposed:,}" if proposed else "none proposed"
        best_steps = sum(case.best_steps for case in its)
        best = f"{tokens / best_steps:.2f}" if best_steps else "–"
        lines.append(
            f"| {kind} | {sampled} | {requests} | {share}"
            f" | {tokens / sum(case.steps for case in its):.2f} | {best} | {tokens / plain:,.0f}"
            f" | {tokens / proposing:,.0f} | {plain / proposing:.2f} ×"
            f" | {sum(case.same for case in its)} of {len(its)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the machine's files, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=3, help="of each kind, at most 5")
    parser.add_argument("--tokens", type=int, default=80, help="of each answer")
    parser.add_argument("--rounds", type=int, default=2, help="of which the first doesn't count")
    args = parser.parse_args()
    cases = measure(args.prompts, args.tokens, args.rounds)
    table = markdown(cases, args.tokens, args.rounds)
    keep_results(machine_folder(), "speculation", [asdict(case) for case in cases], table)


if __name__ == "__main__":
    run_command(main)
