"""Propose tokens with a draft model, in the step that checks them (rule 11).

Its keys and values lie in pages of its own, in the same blocks as the model's: a block's number
finds both. So block tables, copies, swaps and the prefix cache need no second account.

It computes a sequence's tokens only when it is to propose for it: first those that it hasn't
computed, then each of its own proposals. `DraftedSlots` knows how far each block is computed. What
it proposes from never changes the text, only how many proposals are right.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from engine.core.messages import StepPlan
from engine.kernels import kernels_for
from engine.kernels.batch import LayerCache
from engine.models.causal_lm import CausalLM
from engine.placeholders import UNKNOWN
from engine.rounding import ceil_div
from engine.trace.events import StepRow
from engine.worker.graphs.step_graphs import StepGraphs
from engine.worker.seats import Seats
from engine.worker.step_inputs import StepInputs

FEW = 4
"""A sequence fewer tokens behind catches up in its first pass, each token in a row of its own, so
that the pass can be replayed. After a step whose proposals were all right it is one behind."""


class Drafts(NamedTuple):
    """Hold what was proposed in a step."""

    proposed: dict[str, list[int]]  # of the whole plan; `UNKNOWN` where the draft's text has ended
    drafted: dict[str, list[int]]  # by the draft model, without these
    passes: list[tuple[int, float]]  # see `StepOutput.draft_passes`


NO_DRAFTS = Drafts({}, {}, [])


class DraftedSlots:
    """Know how many of each block's first slots hold the draft's keys and values of its tokens."""

    def __init__(self, num_blocks: int, num_host_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self._here = np.zeros(num_blocks, np.int64)
        self._away = np.zeros(num_host_blocks, np.int64)

    def move(self, plan: StepPlan) -> None:
        """Follow what a plan swaps and copies."""
        for block, host_block in plan.swap_out:
            self._away[host_block] = self._here[block]
        for host_block, block in plan.swap_in:
            self._here[block] = self._away[host_block]
        copied = [int(self._here[source]) for source, _ in plan.copies]
        for (_, target), count in zip(plan.copies, copied):
            self._here[target] = count

    def forget(self, blocks: np.ndarray, places: np.ndarray | int) -> None:
        """Forget the slots of blocks from these places on: other tokens come there."""
        np.minimum.at(self._here, blocks, places)

    def computed(self, table: np.ndarray, most: int) -> int:
        """Return how many of a sequence's first `most` tokens are computed. table: its blocks."""
        size = self.block_size
        full = self._here[table[: ceil_div(most, size)]]
        partly = np.flatnonzero(full < size)
        if not len(partly):
            return most
        return min(most, int(partly[0]) * size + int(full[partly[0]]))

    def add(self, table: np.ndarray, end: int) -> None:
        """Note that all tokens of a sequence before `end` are computed now."""
        last, rest = divmod(end, self.block_size)
        self._here[table[:last]] = self.block_size
        if rest:
            self._here[table[last]] = rest


class Drafter:
    """Compute the draft model on the seats' tokens, in the blocks of their tables."""

    def __init__(
        self,
        model: CausalLM,
        caches: list[LayerCache],
        seats: Seats,
        slots: DraftedSlots,
        budget: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        """Hold the model and its pages.

        budget: tokens of a pass, at most. vocab_size: of the model that checks; tables of one
        tokenizer may be padded to different sizes.
        """
        self.model = model
        self.caches = caches
        self.seats = seats
        self.slots = slots
        self.budget = budget
        self.vocab_size = vocab_size
        self.device = device
        self.graphs: StepGraphs | None = None

    def follow(self, plan: StepPlan) -> None:
        """Follow a plan's copies and swaps, and forget what stands where its rows write."""
        self.slots.move(plan)
        rows, size = plan.rows, self.slots.block_size
        if not rows:
            return
        tables = self.seats.block_table
        seats = [self.seats.of(row.request_id) for row in rows]
        pages, places = np.divmod(np.array([row.start for row in rows]), size)
        self.slots.forget(tables[seats, pages], places)
        for seat, page, row in zip(seats, pages.tolist(), rows):
            if row.start % size + row.num_tokens > size:
                last = (row.start + row.num_tokens - 1) // size
                self.slots.forget(tables[seat, page + 1 : last + 1], 0)

    def propose(self, plan: StepPlan) -> Drafts:
        """Fill in a plan's `UNKNOWN` proposals. What was known stays."""
        first: dict[str, int] = {}  # position of each sequence's first proposal
        for row in plan.rows[-sum(map(len, plan.proposed.values())) :]:
            first.setdefault(row.request_id, row.start)
        wanted = {name: len(ids) for name, ids in plan.proposed.items() if ids[0] == UNKNOWN}
        found: dict[str, list[int]] = {name: [] for name in wanted}
        passes: list[tuple[int, float]] = []
        starts = self._catch_up({name: first[name] - 1 for name in wanted})
        rows = [
            StepRow(name, position, 1, 1)
            for name, start in starts.items()
            for position in range(start, first[name])
        ]
        while rows:
            began = time.perf_counter()
            drawn = self._draw(rows)
            passes.append((len(rows), (time.perf_counter() - began) * 1e6))
            last = {row.request_id: token for row, token in zip(rows, drawn)}
            rows = []
            for name, token in last.items():
                seat, its, position = self.seats.of(name), found[name], first[name]
                if token in self.seats.new(seat).stop_token_ids or token >= self.vocab_size:
                    continue  # the draft's text ends here: what would follow is no proposal
                self.seats.tokens[seat, position + len(its)] = token
                its.append(token)
                if len(its) < wanted[name]:
                    rows.append(StepRow(name, position + len(its) - 1, 1, 1))
        for name, its in found.items():
            computed = first[name] + min(len(its), wanted[name] - 1)  # no pass computed the last
            self.slots.add(self.seats.block_table[self.seats.of(name)], computed)
        filled = {name: its + [UNKNOWN] * (wanted[name] - len(its)) for name, its in found.items()}
        return Drafts({**plan.proposed, **filled}, found, passes)

    def _catch_up(self, ends: dict[str, int]) -> dict[str, int]:
        """Compute sequences' tokens before `ends`, in chunks. Returns where each goes on.

        Fewer than `FEW` are left to its first pass.
        """
        starts = {}
        for name, end in ends.items():
            table = self.seats.block_table[self.seats.of(name)]
            starts[name] = self.slots.computed(table, end)
        while True:
            rows, room = [], self.budget
            for name, end in ends.items():
                count = min(end - starts[name], room)
                if count and (end - starts[name] >= FEW):
                    rows.append(StepRow(name, starts[name], count, 0))
                    starts[name] += count
                    room -= count
            if not rows:
                return starts
            inputs = self._gather(rows, self.budget - room)
            if self.graphs is not None and self.graphs.fits(inputs):
                self.graphs.run(inputs, None)
                continue
            batch = inputs.attention(self.device)
            self.model(inputs.ids(self.device), batch.positions, self.caches, batch)

    def _draw(self, rows: list[StepRow]) -> list[int]:
        """Compute rows of one token each; return each one's most probable next token."""
        inputs = self._gather(rows, len(rows))
        if self.graphs is not None and self.graphs.fits(inputs):
            _, _, greatest = self.graphs.run(inputs, None)
        else:
            batch = inputs.attention(self.device)
            ids = inputs.ids(self.device)
            hidden = self.model(ids, batch.positions, self.caches, batch)
            greatest = kernels_for(self.device).greatest(self.model.compute_logits(hidden))
        assert greatest is not None, "rows of one token have logits"
        return greatest.clamp(min=0).tolist()  # −1: its logits aren't finite

    def _gather(self, rows: list[StepRow], num_tokens: int) -> StepInputs:
        """Gather the numbers of a pass. A token that the draft doesn't have becomes its last."""
        inputs = self.seats.gather(StepPlan(step=0, rows=rows, num_tokens=num_tokens))
        if self.model.vocab_size < self.vocab_size:
            np.minimum(inputs.token_ids, self.model.vocab_size - 1, out=inputs.token_ids)
        return inputs
