"""Take tokens without a draw where a grammar forces them and a step computes what follows, too.

The logit of such a token must be finite, as for a draw; the rest of its row plays no part. One row
of each sequence is drawn: always those of the same sequences, in their order, so that their
parameters needn't be gathered anew for each step.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

import numpy as np
import torch

from engine.placeholders import NO_TOKEN
from engine.worker.sampling.sampling_table import SamplingTable


class CertainDraws(NamedTuple):
    """Hold the draws of a step whose tokens are known, and the places of the others."""

    places: np.ndarray  # int64 [certain], among the step's draws
    tokens: np.ndarray  # int64 [certain]
    others: np.ndarray  # int64 [draws − certain]
    ahead: np.ndarray  # int64 [draws − certain], how many proposals each of these follows

    def join(self, logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """Return the tokens of all draws, int64. drawn: those of `others`.

        `logits`: [draws, vocab], the model's own.
        """
        joined = torch.empty(len(logits), dtype=torch.int64)
        tokens = joined.numpy()
        tokens[self.places], tokens[self.others] = self.tokens, drawn.numpy()
        chosen = logits[torch.from_numpy(self.places), torch.from_numpy(self.tokens)]
        if not isfinite(chosen.sum().item()):
            tokens[self.places[~chosen.isfinite().numpy()]] = NO_TOKEN
        return joined


def certain_draws(
    table: SamplingTable, seats: np.ndarray, ahead: np.ndarray
) -> CertainDraws | None:
    """Find the draws that need none, since a proposal behind them is drawn. None: there are none.

    `seats`, `ahead`: as for `GrammarMasks.masks`. Draws of sequences with rules of their own are
    left as they are: these may forbid that token too.
    """
    only = table.grammars.only(seats, ahead)
    certain: list[int] = []
    last: dict[int, int] = {}  # the last place of each seat
    more: list[int] = []  # what else is to be drawn
    for place, seat in enumerate(seats.tolist()):
        before = last.get(seat)
        if before is not None:
            is_certain = only[before] != NO_TOKEN and table.takes_certain(seat)
            (certain if is_certain else more).append(before)
        last[seat] = place
    if not certain:
        return None
    places = np.array(certain, np.int64)
    others = np.array([*last.values(), *more], np.int64)
    return CertainDraws(places, np.array(only, np.int64)[places], others, ahead[others])
