"""Choose how many proposals a step checks: as many as make tokens come faster.

A step with r rows takes about `fixed + each · r`. A proposal that is right with probability q adds
q tokens for one row more, so tokens per second grow while

    q > each · (tokens expected so far) / (time of the step so far).

The most probable proposals are added first, until the next one wouldn't pay. Both sides are
measured: the times of steps by their rows (`step_costs.py`), and how often the proposals of a
sequence were right. Where many sequences share a step, a row costs what a token is worth, and none
is added.

A sequence with a grammar is proposed what the grammar forces, which is always right (q = 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heapreplace
from weakref import WeakKeyDictionary

from engine.core.kv_manager import KVManager
from engine.core.proposer import Proposer
from engine.core.request import Request
from engine.core.step_costs import StepCosts

FADING = 0.9
"""What a draft leaves of the weight of the ones before it."""
FORGETTING = 0.98
"""The same of a step in which no proposal of a sequence was worth trying. Hence one whose proposals
were wrong is tried again, after some tens of steps."""
PRIOR = 2.0
"""StepProposals of a sequence that weigh as much as what is known of all others."""


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
        self.everyone = Hits()
        self._hits: WeakKeyDictionary[Request, Hits] = WeakKeyDictionary()
        # Where the last proposals came from.
        self._sources: WeakKeyDictionary[Request, int] = WeakKeyDictionary()

    def choose(
        self, decoding: Iterable[Request], num_rows: int, budget: int
    ) -> list[tuple[Request, list[int]]]:
        """Return the proposals that a step checks, of requests that have one row each in it.

        num_rows: of the step so far. budget: tokens that it may still compute.
        """
        room = min(budget, self.max_rows - num_rows)
        if room <= 0:
            return []
        fixed, each = self.costs.line(num_rows)
        time = fixed + each * num_rows
        known = self.everyone.share(0.5)
        found: dict[Request, list[int]] = {}
        shares: list[float] = []
        left_out = False
        for request in decoding:
            share = 1.0  # of tokens that a grammar forces
            if request.grammar is None:
                hits = self._hits.get(request)
                share = known if hits is None else hits.share(known)
                if share * time <= each * num_rows:  # not even the first pays
                    left_out = True
                    if hits is not None:
                        hits.fade()
                    continue
            token_ids = self._proposals(request, room)
            if token_ids:
                found[request] = token_ids
                shares.append(share)
        if left_out:
            self.everyone.fade()
        counts = self._worth(shares, [len(ids) for ids in found.values()], num_rows, room)
        return self._that_fit(found, counts)

    def verified(self, request: Request, num_proposed: int, right: int) -> int:
        """Learn how many proposals were right. Returns where they came from (`Proposed.source`)."""
        if request.grammar is not None:
            return -1
        hits = self._hits.get(request)
        if hits is None:
            hits = self._hits[request] = Hits()
        for each in (hits, self.everyone):
            each.add(right, int(right < num_proposed))
        return self._sources[request]

    def _proposals(self, request: Request, room: int) -> list[int]:
        """Return proposals that the sequence has room for, up to one that would end it."""
        most = min(self.most, room, request.most_tokens - request.num_tokens - 1)
        if most <= 0:
            return []
        if request.grammar is not None:  # its masks are known ahead where tokens are forced
            token_ids = request.forced_tokens[:most]
        else:
            token_ids, self._sources[request] = self.proposer.propose(request, most)
        for place, token in enumerate(token_ids):
            if token in request.end_ids:
                return token_ids[:place]
        return token_ids

    def _worth(self, shares: list[float], most: list[int], num_rows: int, room: int) -> list[int]:
        """Return how many proposals of each sequence pay, the most probable ones first."""
        counts = [0] * len(shares)
        fixed, each = self.costs.line(num_rows)
        tokens, time = float(num_rows), fixed + each * num_rows
        next_ones = [(-share, place) for place, share in enumerate(shares)]
        heapify(next_ones)
        for _ in range(room):
            if not next_ones:
                break
            chance, place = -next_ones[0][0], next_ones[0][1]
            if chance * time <= each * tokens:
                break
            counts[place] += 1
            tokens, time = tokens + chance, time + each
            if counts[place] < most[place]:
                heapreplace(next_ones, (-chance * shares[place], place))
            else:
                heappop(next_ones)
        return counts

    def _that_fit(
        self, found: dict[Request, list[int]], counts: list[int]
    ) -> list[tuple[Request, list[int]]]:
        """Cut proposals for which no block is free; they never take one from a sequence."""
        free = self.kv.pool.num_free
        chosen = []
        for (request, token_ids), count in zip(found.items(), counts):
            if self.kv.blocks_to_grow(request, count) > free:
                slots = (len(request.block_table) + free) * self.kv.block_size
                count = slots - request.num_planned_tokens
            if count:
                free -= self.kv.blocks_to_grow(request, count)
                chosen.append((request, token_ids[:count]))
        return chosen
