"""Show what proposed tokens gain: from their chance of being right, then in fact (a chapter)."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from random import Random

from engine.config.speculative import LOOKUP_MAX, LOOKUP_MIN
from engine.core.proposer import NgramProposer, Proposed
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.trace.events import SpecVerified
from lab.chapter import Chapter, Expectation, Outcome, quantity
from lab.drawings import Lines, Series
from lab.workbench import Job, Run, StepCost, Workbench

MOST = 7
SEATS = 8  # so a step may have 8 × (1 + 7) rows, as many as the workbench's engine has seats
PASSAGE, ANSWER = 40, 96  # tokens
CHANCES = (0.5, 0.8, 1.0)
OPTION = {"method": "ngram", "num_speculative_tokens": MOST}


class Remembers:
    """Propose a text that is known, each token right with a given probability."""

    drafts = False

    def __init__(self, text: list[int], chance: float) -> None:
        self.text = text
        self.chance = chance
        self.random = Random(1)

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        first = request.num_output_tokens
        return Proposed([self._said(token) for token in self.text[first : first + most]])

    def _said(self, token: int) -> int:
        if self.random.random() < self.chance:
            return token
        return token - 1 if token else 1


def _job(bench: Workbench) -> Job:
    length = min(PASSAGE, bench.kv.max_model_len // 4)
    return Job("answer", bench.prompt(length), min(ANSWER, bench.kv.max_model_len - length))


def added(chance: float, proposed: int) -> float:
    """Return how many of so many proposals are right: each only if those before it are."""
    return sum(chance**count for count in range(1, proposed + 1))


def best_gain(chance: float, cost: StepCost) -> tuple[float, int]:
    """Return (times faster, proposals a step) for the number of proposals that gains most."""
    gains = (
        ((1 + added(chance, k)) * cost.decode(1) / cost.decode(1 + k), k) for k in range(MOST + 1)
    )
    return max(gains)


def predict(bench: Workbench) -> list[Expectation]:
    cost = bench.step_cost
    sums = {chance: best_gain(chance, cost) for chance in CHANCES}
    one, most = quantity(cost.decode(1), "s"), quantity(cost.decode(1 + MOST), "s")
    return [
        *(
            Expectation(
                f"gain {chance}", f"times faster where {quantity(chance, 'share')} are right",
                gain, "×",
                f"{k} proposals a step, of which {quantity(added(chance, k), '')} count; a step of"
                f" one row takes {one}, of {1 + MOST} rows {most}",
            )
            for chance, (gain, k) in sums.items()
        ),
        Expectation(
            "same", "tokens that are the same with proposals and without", 1.0, "share",
            "each is drawn from the same logits, whatever was proposed",
        ),
    ]  # fmt: skip


def run(bench: Workbench) -> Outcome:
    job = _job(bench)
    text = bench.run([[job]]).tokens["answer"]

    def proposing(chance: float) -> Run:
        scheduler = partial(Scheduler, proposer=lambda asked: Remembers(text, chance))
        return bench.run(
            [[job]], scheduler=scheduler, speculative_config=OPTION, max_num_seqs=SEATS
        )

    tries = bench.tries(
        {"without": partial(bench.run, [[job]])}
        | {f"gain {chance}": partial(proposing, chance) for chance in CHANCES}
    )
    plain = tries.pop("without")
    best = {name: min(runs, key=_decoding) for name, runs in tries.items()}
    least = min(map(_decoding, plain))
    drawn = [run.tokens["answer"] for run in best.values()]
    same = [a == b for tokens in drawn for a, b in zip(text, tokens)]
    return Outcome(
        {
            **{name: least / _decoding(run) for name, run in best.items()},
            "same": sum(same) / (len(text) * len(drawn)),
        },
        [
            *(_told(name, run) for name, run in best.items()),
            _looked_up(job, text),
        ],
        [
            Lines("The answer grows", "step", "tokens", [
                Series("one a step", [(float(n), float(n)) for n in range(1, len(text) + 1)]),
                *(
                    Series(f"{quantity(chance, 'share')} right", _growth(best[f"gain {chance}"]))
                    for chance in CHANCES
                ),
            ]),
        ],
        tries={
            name: [_decoding(a) / _decoding(b) for a, b in zip(plain, runs)]
            for name, runs in tries.items()
        },
    )  # fmt: skip


def _told(name: str, run: Run) -> str:
    verified = run.of(SpecVerified)
    proposed = sum(event.num_proposed for event in verified)
    right = sum(event.num_accepted for event in verified)
    return (
        f"{name}: {len(run.steps)} steps; {right:,} of {proposed:,} proposals were right, up to the"
        " first wrong one of each step"
    )


def _looked_up(job: Job, text: list[int]) -> str:
    """Say what look-up in the text itself would have proposed."""
    request = Request(job.request(), (0, 0, 0), 0, job.num_output)
    proposer = NgramProposer(LOOKUP_MIN, LOOKUP_MAX)
    found = right = 0
    for token in text:
        proposed = proposer.propose(request, 1).token_ids
        found += len(proposed)
        right += proposed == [token]
        request.token_ids.append(token)
    return (
        f"looking up where the last tokens stood before proposes something at {found} of"
        f" {len(text)} places of this text, and is right at {right}"
    )


def _decoding(run: Run) -> float:
    """Return the seconds from the only request's first token to its last."""
    return run.end_s["answer"] - run.first_s["answer"]


def _growth(run: Run) -> list[tuple[float, float]]:
    """Return (step, tokens of the answer so far)."""
    drawn = accumulate(step.finished.num_sampled for step in run.steps)
    return [(float(step), float(tokens)) for step, tokens in enumerate(drawn, 1)]


CHAPTER = Chapter(
    "speculation",
    "Several tokens a step: propose, then check",
    "A decode step reads all weights for one token, so a few rows more cost little: they can check"
    " tokens that somebody proposes. Each row draws the very token that it would have drawn later,"
    " so right proposals save steps, and wrong ones change nothing but the time. Here the proposals"
    " are the known answer, spoilt at random, so that their chance of being right is known too.",
    predict,
    run,
    "engine/core/verification.py",
    "how proposals are compared, and what is undone",
)
