"""Choose how many proposals a step checks: as many as make tokens come faster (`worth.py`).

Both sides are measured: the times of steps by their rows (`step_costs.py`), and how often the
proposals of a sequence were right. Where many sequences share a step, a row costs what a token is
worth, and none is added.

Not for sequences with a grammar: they are proposed what it forces (`proposal_room.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from engine.core import worth
from engine.core.kv_manager import KVManager
from engine.core.proposal_room import most_proposals, that_fit, until_end
from engine.core.proposer import Proposer
from engine.core.request import Request
from engine.core.step_costs import StepCosts

FADING = 0.9
"""What a draft leaves of the weight of the ones before it."""
FORGETTING = 0.98
"""The same of a step in which no proposal of a sequence was worth trying. Hence one whose proposals
were wrong is tried again, after some tens of steps."""
PRIOR = 2.0
"""Proposals of a sequence that weigh as much as what is known of all others."""
LOOKED_UP, DRAFTED = 0.5, 0.7
"""How probable it is that a proposal is right, before any was checked. A draft model that costs
half a step must be thought good, or it would never be tried."""


class Hits:
    """Count right and wrong proposals, older ones with less weight.

    After a wrong one those behind it say nothing, so a draft has one wrong proposal at most.
    """

    def __init__(self) -> None:
        self.right = 0.0
        self.wrong = 0.0

    def add(self, right: int, wrong: int) -> None:
        self.right = self.right * FADING + right
        self.wrong = self.wrong * FADING + wrong

    def fade(self) -> None:
        self.right *= FORGETTING
        self.wrong *= FORGETTING

    def share(self, prior: float) -> float:
        """Estimate how probable it is that the next proposal is right."""
        return (self.right + PRIOR * prior) / (self.right + self.wrong + PRIOR)


class Speculator:
    """Hold a proposer, and what is known of its proposals and of the times of steps."""

    def __init__(self, kv: KVManager, proposer: Proposer, most: int, max_rows: int) -> None:
        """Start knowing nothing. most: proposals for one sequence. max_rows: of a step."""
        self.kv = kv
        self.proposer = proposer
        self.most = most
        self.max_rows = max_rows
        self.costs = StepCosts()
        self.passes = StepCosts()  # of a draft model
        self.everyone = Hits()
        self._prior = DRAFTED if proposer.drafts else LOOKED_UP
        self._hits: WeakKeyDictionary[Request, Hits] = WeakKeyDictionary()
        # Where the last proposals came from.
        self._sources: WeakKeyDictionary[Request, int] = WeakKeyDictionary()

    def wants(self, running: list[Request], leaving: Iterable[Request]) -> bool:
        """Return whether the next step should wait for the one in flight, to have proposals.

        It must if that one checks some, also of a request that has ended meanwhile: of a step with
        proposals the worker keeps no drawn tokens for the next one. Else only if some might pay.
        """
        if any(request.num_proposed_tokens for request in (*running, *leaving)):
            return True
        step = worth.BareStep(len(running), *self.costs.line(len(running)), 0)
        known = self.everyone.share(self._prior)
        free = [request for request in running if request.grammar is None]
        if any(step.pays(self._share(request, known)) for request in free):
            return True
        self._fade(free)
        return False

    def choose(
        self, decoding: Iterable[Request], num_rows: int, budget: int
    ) -> list[tuple[Request, list[int]]]:
        """Return the proposals that a step checks, of requests that have one row each in it.

        Those that have a grammar are left out.
        num_rows: of the step so far. budget: tokens that it may still compute.
        """
        room = min(budget, self.max_rows - num_rows)
        if room <= 0:
            return []
        step = worth.BareStep(num_rows, *self.costs.line(num_rows), room)
        known = self.everyone.share(self._prior)
        found: dict[Request, list[int]] = {}
        shares: list[float] = []
        left_out: list[Request] = []
        for request in decoding:
            if request.grammar is not None:
                continue
            share = self._share(request, known)
            if not step.pays(share):  # not even the first proposal
                left_out.append(request)
                continue
            token_ids = self._proposals(request, room)
            if token_ids:
                found[request] = token_ids
                shares.append(share)
        counts = self._counts(step, found, shares)
        if self.proposer.drafts:
            left_out += [request for request, count in zip(found, counts) if not count]
        self._fade(left_out)
        cut = [(r, token_ids[:n]) for (r, token_ids), n in zip(found.items(), counts)]
        return that_fit(self.kv, cut)

    def _share(self, request: Request, known: float) -> float:
        """Estimate how probable it is that its next proposal is right. known: of all sequences."""
        hits = self._hits.get(request)
        return known if hits is None else hits.share(known)

    def _counts(
        self, step: worth.BareStep, found: dict[Request, list[int]], shares: list[float]
    ) -> list[int]:
        """Return how many of the proposals found for each sequence pay."""
        most = [len(token_ids) for token_ids in found.values()]
        if not self.proposer.drafts:
            return worth.most_probable(step, shares, most)
        return worth.by_passes(step, shares, most, self._pass_us)

    def _pass_us(self, num_rows: int) -> float:
        """Return the time of a pass of the draft model; nothing until it is known."""
        if not self.passes.known:
            return 0.0
        fixed, each = self.passes.line(num_rows)
        return fixed + each * num_rows

    def _fade(self, left_out: list[Request]) -> None:
        """Forget a little of sequences for which nothing was tried, and of all if there are any."""
        for request in left_out:
            if request in self._hits:
                self._hits[request].fade()
        if left_out:
            self.everyone.fade()

    def verified(self, request: Request, num_proposed: int, right: int) -> int:
        """Learn how many proposals were right. Returns where they came from (`Proposed.source`)."""
        hits = self._hits.get(request)
        if hits is None:
            hits = self._hits[request] = Hits()
        for each in (hits, self.everyone):
            each.add(right, int(right < num_proposed))
        return self._sources[request]

    def _proposals(self, request: Request, room: int) -> list[int]:
        """Return proposals that the sequence has room for, up to one that would end it."""
        most = most_proposals(request, min(self.most, room))
        if most <= 0:
            return []
        token_ids, source = self.proposer.propose(request, most)
        if not token_ids:
            return token_ids
        self._sources[request] = source
        return until_end(request, token_ids)
