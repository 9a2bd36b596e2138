"""Keep the sampling parameters of all rows from step to step.

One line for each slot of `batch_rows.py`, written when its sequence arrives. The lines of a step's
rows are gathered into a `SampleBatch` only when the rows differ from the last step's, so a steady
decode does no work here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.core.messages import NewRow
from engine.sampling_params import SamplingParams
from engine.worker.sampling.draw import Cuts
from engine.worker.sampling.penalties import OutputCounts
from engine.worker.sampling.philox import random_words
from engine.worker.sampling.token_rules import TokenRules
from engine.worker.transfers import to_device

TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(6)
AHEAD = 16  # positions for which random words are computed at once
LEAST_TEMPERATURE = 1e-30  # dividing logits by less would make them infinite


@dataclass
class SampleBatch:
    """Hold parameters of the rows that draw in a step. Indices are places in the step's logits."""

    slots: np.ndarray  # int64 [rows]
    seeds: np.ndarray  # int64 [rows], of the sibling that the row draws for
    greedy: torch.Tensor  # int64 [g], rows with temperature 0; empty where all have it
    random: torch.Tensor  # int64 [r], the others
    temperature: torch.Tensor | None  # fp32 [r, 1]; None: 1 in every row
    cuts: Cuts  # [r]
    any_top_k: bool  # one of these has such a cut
    any_top_p: bool
    truncated: torch.Tensor  # int64 [t], those of the r with top_k or top_p
    free: torch.Tensor  # int64 [r − t], those with neither
    free_min_p: bool  # one of these uses min_p
    penalised: np.ndarray  # int64 [p]
    penalty_lines: torch.Tensor  # int64 [p], in OutputCounts
    penalties: torch.Tensor  # fp32 [3, p]: repetition, frequency, presence
    rules: list[tuple[int, TokenRules]]
    logprob_rows: list[int]  # rows that want log-probabilities
    _first: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _ahead: np.ndarray = field(default_factory=lambda: np.zeros((0, AHEAD), np.int64))

    def __post_init__(self) -> None:
        some = len(self.random) or len(self.penalised) or self.rules
        self.plain = not some
        """Greedy rows only, without rules and penalties: only the greatest logit is needed."""

    def words(self, positions: np.ndarray) -> np.ndarray:
        """Return Philox's words for the tokens drawn at `positions`, int64 [rows].

        They depend on nothing that is computed, so the words of the next 16 positions are computed
        too.
        """
        if len(self._first):
            step = int(positions[0] - self._first[0])
            if 0 <= step < AHEAD and bool((positions - self._first == step).all()):
                return self._ahead[:, step]
        places = (positions[:, None] + np.arange(AHEAD)).ravel()
        self._first = positions.copy()
        self._ahead = random_words(np.repeat(self.seeds, AHEAD), places).reshape(-1, AHEAD)
        return self._ahead[:, 0]


def warmth(params: SamplingParams) -> float:
    """Return what logits are divided by; 0: the greatest is taken instead."""
    return max(params.temperature, LEAST_TEMPERATURE) if params.temperature else 0.0


class SamplingTable:
    """Hold parameters by slot: `set` and `clear` follow the rows, `batch` gathers."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.vocab_size = vocab_size
        self.device = device
        self.counts = OutputCounts(vocab_size, device)
        self._floats = np.zeros((num_slots, 6))
        self._top_k = np.zeros(num_slots, np.int64)
        self._seeds = np.zeros(num_slots, np.int64)
        self._logprobs = np.zeros(num_slots, bool)
        self._lines = np.full(num_slots, -1, np.int64)  # in `counts`, −1: none
        self._num_penalised = 0  # slots with a line
        self._rules: dict[int, TokenRules] = {}
        self._last: SampleBatch | None = None
        self._last_key = (b"", b"")

    def set(self, slot: int, row: NewRow) -> None:
        """Store the parameters of a sequence that enters a slot."""
        self.clear(slot)
        params = row.params
        self._floats[slot] = (
            warmth(params),
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        self._top_k[slot] = params.top_k if 0 < params.top_k < self.vocab_size else self.vocab_size
        self._seeds[slot] = (row.seed + 2**63) % 2**64 - 2**63  # its 64 bits, as int64
        self._logprobs[slot] = params.logprobs is not None
        rules = TokenRules.of(row)
        if rules:
            self._rules[slot] = rules
        neutral = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        if neutral != (1.0, 0.0, 0.0):
            output = np.array(row.token_ids[row.num_prompt_tokens :], np.int64)
            self._lines[slot] = self.counts.add(output)
            self._num_penalised += 1

    def clear(self, slot: int) -> None:
        """Forget the sequence of a slot."""
        self._last = None
        self._rules.pop(slot, None)
        if self._lines[slot] >= 0:
            self.counts.release(int(self._lines[slot]))
            self._lines[slot] = -1
            self._num_penalised -= 1

    @property
    def any_history(self) -> bool:
        """Return whether some sequence's next token depends on its tokens, besides its logits."""
        return bool(self._rules) or self._num_penalised > 0

    def appended(self, slots: np.ndarray, token_ids: np.ndarray) -> None:
        """Count one more token for each sequence; no slot comes twice. Both int64 [rows]."""
        if not self._num_penalised:
            return
        lines = self._lines[slots]
        counted = lines >= 0
        if counted.any():
            self.counts.count(self._on_device(lines[counted]), self._on_device(token_ids[counted]))

    def batch(self, slots: np.ndarray, siblings: np.ndarray | None = None) -> SampleBatch:
        """Gather what the rows of a step need. `slots`, `siblings`: int64 [rows].

        Sibling i of a row draws with seed + i. Without siblings each row is its first.
        """
        key = slots.tobytes(), b"" if siblings is None else siblings.tobytes()
        if self._last is None or key != self._last_key:
            if siblings is None:
                siblings = np.zeros(len(slots), np.int64)
            self._last, self._last_key = self._gather(slots, siblings), key
        return self._last

    def _gather(self, slots: np.ndarray, siblings: np.ndarray) -> SampleBatch:
        floats = self._floats[slots]
        greedy = floats[:, TEMPERATURE] == 0
        random = np.flatnonzero(~greedy)
        some = floats[random]
        heat = some[:, TEMPERATURE, None].astype(np.float32)
        top_k = self._top_k[slots[random]]
        by_count, by_mass = top_k < self.vocab_size, some[:, TOP_P] < 1
        truncated = by_count | by_mass
        penalised = np.flatnonzero(self._lines[slots] >= 0)
        place = self._on_device
        return SampleBatch(
            slots=slots.copy(),
            seeds=self._seeds[slots] + siblings,
            greedy=place(np.flatnonzero(greedy if len(random) else greedy[:0])),
            random=place(random),
            temperature=place(heat) if (heat != 1).any() else None,
            cuts=Cuts(place(top_k), place(some[:, TOP_P]), place(some[:, MIN_P])),
            any_top_k=bool(by_count.any()),
            any_top_p=bool(by_mass.any()),
            truncated=place(np.flatnonzero(truncated)),
            free=place(np.flatnonzero(~truncated)),
            free_min_p=bool(some[~truncated, MIN_P].any()),
            penalised=penalised,
            penalty_lines=place(self._lines[slots[penalised]]),
            penalties=place(floats[penalised, REPETITION:].T.astype(np.float32)),
            rules=[
                (place_in_logits, self._rules[slot])
                for place_in_logits, slot in enumerate(slots.tolist())
                if slot in self._rules
            ]
            if self._rules
            else [],
            logprob_rows=np.flatnonzero(self._logprobs[slots]).tolist(),
        )

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.device)
