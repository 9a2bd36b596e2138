"""Propose tokens for the PagedOracle that are right for a while, and check them at any cost."""

from __future__ import annotations

from functools import partial
from random import Random

from engine.config.speculative import Speculation
from engine.core.proposer import Proposed
from engine.core.request import Request
from engine.core.scheduler import Scheduler
from engine.core.speculator import Speculator
from tests.support.paged_oracle import VOCAB_SIZE, next_token


class HalfRight:
    """Guess what the oracle will draw, and from a random place on something else."""

    drafts = False

    def __init__(self, asked: Speculation) -> None:
        self.random = Random(asked.num_speculative_tokens)

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        tokens = list(request.token_ids)
        right = self.random.choice([0, 1, 2, most, most])
        for _ in range(self.random.choice([most, most, self.random.randint(0, most)])):
            token = next_token(tokens, request.seed)
            tokens.append(token if right > 0 else (token + 1) % VOCAB_SIZE)
            right -= 1
        return Proposed(tokens[request.num_tokens :], 0)


class NothingCosts:
    """Claim that rows cost nothing, so that every proposal is checked."""

    known = False

    def observe(self, num_rows: int, us: float) -> None: ...

    def of(self, num_rows: int) -> float:
        return 0.0

    def line(self, num_rows: int) -> tuple[float, float]:
        return 1e6, 0.0  # of so long a step looking up is no part that counts


class EagerScheduler(Scheduler):
    """Check all proposals for which there is room."""

    speculator: Speculator

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.speculator is not None:
            self.speculator.costs = NothingCosts()  # type: ignore[assignment]
            self.speculator.passes = NothingCosts()  # type: ignore[assignment]
            self.speculator.longest_rest = 0  # every step waits for proposals


proposing_scheduler = partial(EagerScheduler, proposer=HalfRight)


def proposals(most: int) -> dict:
    """Return the option for so many proposals; none for 0."""
    return {"method": "ngram", "num_speculative_tokens": most} if most else {}


class Replay:
    """Propose how known texts went on."""

    drafts = False

    def __init__(self) -> None:
        self.texts: list[list[int]] = []

    def propose(self, request: Request, most: int, least_equal: int = 0) -> Proposed:
        count = request.num_tokens
        for text in self.texts:
            if text[:count] == request.token_ids:
                return Proposed(text[count : count + most], count)
        return Proposed([])
