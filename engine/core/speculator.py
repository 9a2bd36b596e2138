"""Choose how many proposals a step checks: as many as make tokens come faster (`worth.py`).

Both sides are measured: the times of steps by their rows (`step_costs.py`), and how often the
proposals of a sequence were right, what was looked up by how much of the text is equal (`hits.py`).
Where many sequences share a step, a row costs what a token is worth, and none is added.

Not for sequences with a grammar: they are proposed what it forces (`proposal_room.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from engine.core import worth
from engine.core.hits import (
    NUM_CLASSES,
    Hits,
    HitsByLength,
    chances,
    equal_class,
    fewest_equal,
    first_class,
)
from engine.core.kv_manager import KVManager
from engine.core.proposal_room import TILE, most_proposals, that_fit, until_end
from engine.core.proposer import Proposed, Proposer
from engine.core.request import Request
from engine.core.step_costs import StepCosts

LOOKED_UP, DRAFTED = 0.5, 0.7
"""How probable it is that a proposal is right, before any was checked. A draft model that costs
half a step must be thought good, or it would never be tried."""
IN_VAIN = 8
"""So many times in a row a step may wait for a sequence that is then proposed nothing, or nothing
right: where some text repeats, most of it doesn't."""
LONGEST_REST = 16
"""From then on none waits for it for 1, 2, 4, ... and at most so many steps."""
LOOK_US, LOOK_TOKEN_US = 5.0, 0.004
"""About what looking up takes: for a sequence, and for each of its tokens."""
LOOKING_SHARE = 0.01
"""How much of a step looking up may take for sequences whose last look-up brought nothing right.
They take turns."""


class _Rest:
    """Count how often a step waited for a sequence in vain, and for how many steps none does."""

    __slots__ = ("left", "times")

    def __init__(self) -> None:
        self.left = self.times = 0

    def once_more(self, longest: int) -> None:
        """Count one more time in vain."""
        self.times += 1
        beyond = self.times - IN_VAIN
        if beyond > 0:
            self.left = min(longest, 1 << min(beyond - 1, 10))


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
        # Of what was looked up: the same by the length of the equal part.
        self.everyone_by_length = HitsByLength()
        self._by_length: WeakKeyDictionary[Request, HitsByLength] = WeakKeyDictionary()
        self._last: WeakKeyDictionary[Request, Proposed] = WeakKeyDictionary()
        self.longest_rest = LONGEST_REST
        self._rests: WeakKeyDictionary[Request, _Rest] = WeakKeyDictionary()
        self._turn = 0  # which of them is looked up next

    def wants(self, running: list[Request], leaving: Iterable[Request]) -> bool:
        """Return whether the next step should wait for the one in flight, to have proposals.

        It must if that one checks some, also of a request that has ended meanwhile: of a step with
        proposals the worker keeps no drawn tokens for the next one. Else only if some might pay,
        of a sequence for which steps didn't wait in vain lately: what is found, and whether that
        pays, is known only when one has waited.
        """
        if any(request.num_proposed_tokens for request in (*running, *leaving)):
            return True
        step = self._step(len(running), 0)
        known = self.everyone.share(self._prior)
        free = [request for request in running if request.grammar is None]
        paying = [request for request in free if step.pays(self._share(request, known))]
        resting = [rest for request in paying if (rest := self._rests.get(request)) and rest.left]
        for rest in resting:
            rest.left -= 1
        if len(resting) < len(paying):
            return True
        self._fade(free)
        return False

    def choose(
        self, decoding: Iterable[Request], num_rows: int, budget: int
    ) -> list[tuple[Request, list[int]]]:
        """Return the proposals that a step checks, of requests that have one row each in it.

        Those that have a grammar are left out. Where proposals may fill more than a tile, what a
        row more costs is hardly known: few steps have the same number, and a tile's first costs
        most. There a sequence's proposals must pay on average, and a draft model's, which cost
        passes, must always. Else what is found must pay.
        num_rows: of the step so far. budget: tokens that it may still compute.
        """
        room = min(budget, self.max_rows - num_rows)
        if room <= 0:
            return []
        step = self._step(num_rows, room)
        free = [request for request in decoding if request.grammar is None]
        asked = free
        if self.proposer.drafts or num_rows + self.most * len(free) > TILE:
            known = self.everyone.share(self._prior)
            asked = [request for request in free if step.pays(self._share(request, known))]
        choose = self._drafted if self.proposer.drafts else self._looked_up
        found, counts = choose(step, asked)
        cut = [(r, token_ids[:n]) for (r, token_ids), n in zip(found.items(), counts)]
        proposed = {request for request, token_ids in cut if token_ids}
        tried = set(asked)
        if self.proposer.drafts:
            tried -= found.keys() - proposed
        self._fade([request for request in free if request not in tried])
        for request in free:
            if request not in proposed:
                self._in_vain(request)
        return that_fit(self.kv, cut)

    def _in_vain(self, request: Request) -> None:
        """Count that nothing right was proposed for a sequence."""
        rest = self._rests.get(request)
        if rest is None:
            rest = self._rests[request] = _Rest()
        rest.once_more(self.longest_rest)

    def _step(self, num_rows: int, room: int) -> worth.BareStep:
        """Return what is known of a step before proposals."""
        costs = self.costs
        return worth.BareStep(num_rows, *costs.line(num_rows), room, costs.of(num_rows))

    def _share(self, request: Request, known: float) -> float:
        """Estimate how probable it is that its next proposal is right. known: of all sequences."""
        hits = self._hits.get(request)
        return known if hits is None else hits.share(known)

    def _drafted(
        self, step: worth.BareStep, asked: list[Request]
    ) -> tuple[dict[Request, list[int]], list[int]]:
        """Return places for a draft model's tokens, and how many of them pay."""
        places = {request: self._proposals(request, step.room) for request in asked}
        found = {request: token_ids for request, token_ids in places.items() if token_ids}
        known = self.everyone.share(self._prior)
        shares = [self._share(request, known) for request in found]
        most = [len(token_ids) for token_ids in found.values()]
        return found, worth.by_passes(step, shares, most, self._pass_us)

    def _looked_up(
        self, step: worth.BareStep, asked: list[Request]
    ) -> tuple[dict[Request, list[int]], list[int]]:
        """Return what is found, and how much of it pays by the length of the equal part.

        Parts so short that not even the first proposal would pay aren't searched for.
        """
        everyone, least = self.everyone_by_length, step.least_chance
        found: dict[Request, list[int]] = {}
        lines: list[list[float]] = []
        of_all = first_class(None, everyone, least)
        doubted = set(range(of_all)) if asked else set()
        for request in self._in_turn(asked, step.time):
            own, kind = self._by_length.get(request), of_all
            if own is not None:
                kind = first_class(own, everyone, least)
                own.fade_before(kind)
            if kind == NUM_CLASSES:
                continue
            token_ids = self._proposals(request, step.room, fewest_equal(kind))
            if token_ids:
                found[request] = token_ids
                lines.append(chances(own, everyone, self._last[request].matched, len(token_ids)))
        counts = worth.most_probable(step, lines)
        for request, count in zip(found, counts):
            if not count:
                kind = equal_class(self._last[request].matched)
                doubted.add(kind)
                if request in self._by_length:
                    self._by_length[request].fade(kind)
        for kind in doubted:
            everyone.fade(kind)  # once a step, however many sequences were left out
        return found, counts

    def _in_turn(self, free: list[Request], step_us: float) -> list[Request]:
        """Return those to look up: all whose last proposals were right, of the others some."""
        found = [request for request in free if request not in self._rests]
        others = [request for request in free if request in self._rests]
        if others:
            first = self._turn % len(others)
            us = step_us * LOOKING_SHARE
            for request in others[first:] + others[:first]:
                found.append(request)
                self._turn += 1
                us -= LOOK_US + LOOK_TOKEN_US * request.num_tokens
                if us <= 0:
                    break
        return found

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
        wrong = int(right < num_proposed)
        hits = self._hits.get(request)
        if hits is None:
            hits = self._hits[request] = Hits()
            self._by_length[request] = HitsByLength()
        for each in (hits, self.everyone):
            each.add(right, wrong)
        if right:
            self._rests.pop(request, None)
        else:
            self._in_vain(request)
        last = self._last[request]
        if not self.proposer.drafts:
            for by_length in (self._by_length[request], self.everyone_by_length):
                by_length.add(last.matched, right, wrong)
        return last.source

    def _proposals(self, request: Request, room: int, least_equal: int = 0) -> list[int]:
        """Return proposals that the sequence has room for, up to one that would end it."""
        most = most_proposals(request, min(self.most, room))
        if most <= 0:
            return []
        proposed = self.proposer.propose(request, most, least_equal)
        if not proposed.token_ids:
            return []
        self._last[request] = proposed
        return until_end(request, proposed.token_ids)
