"""Keep the sampling parameters of all rows from step to step.

One line for each seat of `seats.py`, written when its sequence arrives. The lines of a step's
rows are gathered into a `SamplingMetadata` only when the rows differ from the last step's, so a
steady decode does no work here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from engine.core.messages import NewRow
from engine.kernels import kernels_for
from engine.sampling_params import SamplingParams
from engine.worker.sampling.exact_draw import Cuts
from engine.worker.sampling.grammar_masks import GrammarMasks
from engine.worker.sampling.penalties import OutputCounts
from engine.worker.sampling.philox import random_words
from engine.worker.sampling.token_rules import StepRules, TokenRules
from engine.worker.transfers import to_device

TEMPERATURE, TOP_P, MIN_P, REPETITION, FREQUENCY, PRESENCE = range(6)  # as `DrawAllowed` wants
AHEAD = 16  # positions for which random words are computed at once
LEAST_TEMPERATURE = 1e-30  # dividing logits by less would make them infinite


@dataclass
class SamplingMetadata:
    """Hold parameters of the rows that draw in a step. Indices are places in the step's logits."""

    seats: np.ndarray  # int64 [rows]
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
    rules: StepRules
    grammar_rows: np.ndarray  # int64 [g], rows whose grammar allows only some tokens
    logprob_rows: list[int]  # rows that want log-probabilities
    _first: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    _ahead: np.ndarray = field(default_factory=lambda: np.zeros((0, AHEAD), np.int64))

    def __post_init__(self) -> None:
        some = len(self.random) or len(self.penalised) or self.rules
        some = some or len(self.grammar_rows)
        self.plain = not some
        """Greedy rows only, without rules and penalties: only the greatest logit is needed."""

    def words(self, positions: np.ndarray) -> np.ndarray:
        """Return Philox's words for the tokens drawn at `positions`, int64 [rows].

        They depend on nothing that is computed, so the words of the next 16 positions are computed
        too.
        """
        if len(self._first):
            steps = positions - self._first  # not all alike where proposals were right
            if bool((steps >= 0).all() and (steps < AHEAD).all()):
                return self._ahead[np.arange(len(steps)), steps]
        places = (positions[:, None] + np.arange(AHEAD)).ravel()
        self._first = positions.copy()
        self._ahead = random_words(np.repeat(self.seeds, AHEAD), places).reshape(-1, AHEAD)
        return self._ahead[:, 0]


def warmth(params: SamplingParams) -> float:
    """Return what logits are divided by; 0: the greatest is taken instead."""
    return max(params.temperature, LEAST_TEMPERATURE) if params.temperature else 0.0


class SamplingTable:
    """Hold parameters by seat: `set` and `clear` follow the rows, `metadata` gathers."""

    def __init__(
        self, num_seats: int, vocab_size: int, device: torch.device, most_draws: int = 0
    ) -> None:
        """Make an empty table. most_draws: of a step; 0: one for each seat."""
        self.num_seats = num_seats
        self.most_draws = most_draws or num_seats
        self.vocab_size = vocab_size
        self.device = device
        self.counts = OutputCounts(vocab_size, device)
        self._floats = np.zeros((num_seats, 6))
        self._top_k = np.zeros(num_seats, np.int64)
        self._seeds = np.zeros(num_seats, np.int64)
        self._logprobs = np.zeros(num_seats, bool)
        self._lines = np.full(num_seats, -1, np.int64)  # in `counts`, −1: none
        self._num_penalised = 0  # seats with a line
        self._rules: dict[int, TokenRules] = {}
        self._no_rules = StepRules([], device)
        self._last_rules: tuple[int, int, SamplingParams, TokenRules | None] | None = None
        self.grammars = GrammarMasks(num_seats, vocab_size, ahead=device.type != "cpu")
        self.masked = np.zeros(num_seats, bool)  # seats whose sequence has a grammar
        # What draws a sequence's tokens: the greatest logit or `DrawAllowed` (simple), or more.
        self._simple = np.ones(num_seats, bool)
        self._needs_kernel = np.zeros(num_seats, bool)
        self._kernel_seats: set[int] = set()  # of these: without any, no step asks further
        self.draw_allowed = kernels_for(device).draw_allowed
        self.parameters, self.top_k = torch.from_numpy(self._floats), torch.from_numpy(self._top_k)
        self._last: SamplingMetadata | None = None
        self._last_key = (b"", b"")

    def set(self, seat: int, row: NewRow) -> None:
        """Store the parameters of a sequence that enters a seat."""
        self.clear(seat)
        params = row.params
        self._floats[seat] = (
            warmth(params),
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        self._top_k[seat] = params.top_k if 0 < params.top_k < self.vocab_size else self.vocab_size
        self._seeds[seat] = (row.seed + 2**63) % 2**64 - 2**63  # its 64 bits, as int64
        self._logprobs[seat] = params.logprobs is not None
        rules = self._rules_of(row)
        if rules is not None:
            self._rules[seat] = rules
        self.grammars.set(seat, row)
        neutral = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        if neutral != (1.0, 0.0, 0.0):
            output = np.array(row.token_ids[row.num_prompt_tokens :], np.int64)
            self._lines[seat] = self.counts.add(output)
            self._num_penalised += 1
        self.masked[seat] = seat in self.grammars
        more = rules is not None or self._lines[seat] >= 0 or params.logprobs is not None
        by_kernel = not more and bool(params.temperature or self.masked[seat])
        self._simple[seat], self._needs_kernel[seat] = not more, by_kernel
        (self._kernel_seats.add if by_kernel else self._kernel_seats.discard)(seat)

    def _rules_of(self, row: NewRow) -> TokenRules | None:
        """Return the rules of a row. Siblings, which follow each other, share them."""
        known = self._last_rules
        if known is None or known[:2] != (id(row.params), row.num_prompt_tokens):
            # The parameters are kept, too, so that no others get their id.
            rules = TokenRules.of(row, self.vocab_size)
            known = self._last_rules = (id(row.params), row.num_prompt_tokens, row.params, rules)
        return known[3]

    def clear(self, seat: int) -> None:
        """Forget the sequence of a seat."""
        self._last = None
        self.masked[seat] = False
        self._kernel_seats.discard(seat)
        self._rules.pop(seat, None)
        self.grammars.clear(seat)
        if self._lines[seat] >= 0:
            self.counts.release(int(self._lines[seat]))
            self._lines[seat] = -1
            self._num_penalised -= 1

    @property
    def any_history(self) -> bool:
        """Return whether some sequence's next token depends on its tokens, besides its logits."""
        return bool(self._rules) or bool(self.grammars) or self._num_penalised > 0

    def allows_few(self, seat: int) -> bool:
        """Return whether a sequence may draw only the tokens that it names."""
        return seat in self._rules and self._rules[seat].allowed is not None

    def needs_kernel(self, seats: np.ndarray) -> np.ndarray | None:
        """Return which draws `DrawAllowed` makes with nothing before it, bool [rows].

        With them it makes those of which only the greatest logit is wanted. None: nobody needs it,
        or this device doesn't have it.
        """
        if not self._kernel_seats or self.draw_allowed is None:
            return None
        return self._simple[seats] if self._needs_kernel[seats].any() else None

    def seeds(self, seats: np.ndarray) -> np.ndarray:
        """Return the seeds of sequences, int64 [rows]."""
        return self._seeds[seats]

    def appended(self, seats: np.ndarray, token_ids: np.ndarray) -> None:
        """Count one more token for each of these sequences. Both int64 [rows].

        A sequence may come several times, once for each of its tokens.
        """
        if not self._num_penalised:
            return
        lines = self._lines[seats]
        counted = lines >= 0
        if counted.any():
            self.counts.count(self._on_device(lines[counted]), self._on_device(token_ids[counted]))

    def metadata(self, seats: np.ndarray, siblings: np.ndarray | None = None) -> SamplingMetadata:
        """Gather what the rows of a step need. `seats`, `siblings`: int64 [rows].

        Sibling i of a row draws with seed + i. Without siblings each row is its first.
        """
        key = seats.tobytes(), b"" if siblings is None else siblings.tobytes()
        if self._last is None or key != self._last_key:
            if siblings is None:
                siblings = np.zeros(len(seats), np.int64)
            self._last, self._last_key = self._gather(seats, siblings), key
        return self._last

    def _gather(self, seats: np.ndarray, siblings: np.ndarray) -> SamplingMetadata:
        floats = self._floats[seats]
        greedy = floats[:, TEMPERATURE] == 0
        random = np.flatnonzero(~greedy)
        some = floats[random]
        heat = some[:, TEMPERATURE, None].astype(np.float32)
        top_k = self._top_k[seats[random]]
        by_count, by_mass = top_k < self.vocab_size, some[:, TOP_P] < 1
        truncated = by_count | by_mass
        penalised = np.flatnonzero(self._lines[seats] >= 0)
        place = self._on_device
        return SamplingMetadata(
            seats=seats.copy(),
            seeds=self._seeds[seats] + siblings,
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
            penalty_lines=place(self._lines[seats[penalised]]),
            penalties=place(floats[penalised, REPETITION:].T.astype(np.float32)),
            rules=self._step_rules(seats),
            grammar_rows=np.array(
                [place for place, seat in enumerate(seats.tolist()) if seat in self.grammars]
                if self.grammars
                else [],
                np.int64,
            ),
            logprob_rows=np.flatnonzero(self._logprobs[seats]).tolist(),
        )

    def _step_rules(self, seats: np.ndarray) -> StepRules:
        places = enumerate(seats.tolist()) if self._rules else ()
        found = [(place, self._rules[seat]) for place, seat in places if seat in self._rules]
        return StepRules(found, self.device) if found else self._no_rules

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.device)
